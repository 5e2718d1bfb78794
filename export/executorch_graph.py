"""A program for ExecuTorch as a list of operations, before it is divided between XNNPACK and the runtime's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKENS = 0  # stands in a shape for the number of tokens of a call, which varies


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value that an operation computes, or that the caller gives.

    dims   its shape, with TOKENS where it varies
    dtype  float32, float16, float64, int64 or int8; qd8 is XNNPACK's int8 with one scale and zero point for each token
    """

    dims: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the program's constant segment; ``index`` is its place there."""

    index: int
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Cache:
    """A tensor that keeps its content from call to call."""

    dims: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Scalar:
    """An integer that is computed at run time."""


@dataclass(frozen=True)
class Filter:
    """A weight inside XNNPACK: its values are packed when the program is loaded.

    key        name of its bytes in the file
    datatype   XNNPACK's name of the type
    dims       (out, in), or (out,) for a bias
    scale_key  name of the bytes of its scales
    group      columns that share a scale; None is a whole row
    """

    key: str
    datatype: str
    dims: tuple[int, ...]
    scale_key: str | None = None
    group: int | None = None


Argument = Tensor | Constant | Cache | Scalar | int | float | bool | None


@dataclass(frozen=True)
class XnnNode:
    """An operation for XNNPACK: inputs by the name of the schema's field, and the schema's other fields."""

    op: str
    inputs: Mapping[str, Tensor | Constant | Cache | Filter | None]
    output: Tensor
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor | Constant | Cache]:
        """The inputs that are not weights."""
        return [value for value in self.inputs.values() if isinstance(value, (Tensor, Constant, Cache))]


@dataclass(frozen=True)
class Kernel:
    """An operation for one of the runtime's kernels.

    repeat_output  out variants also return what they fill
    second_output  of operations that fill two tensors
    """

    op: str
    arguments: tuple[Argument, ...]
    output: Tensor | Scalar
    repeat_output: bool = True
    second_output: Tensor | None = None


@dataclass(frozen=True)
class Partition:
    """Operations that XNNPACK runs as one."""

    nodes: tuple[XnnNode, ...]
    inputs: tuple[Tensor | Constant | Cache, ...]
    outputs: tuple[Tensor, ...]


Node = XnnNode | Kernel
Step = Partition | Kernel


def divide(nodes: list[Node], results: list[Tensor]) -> list[Step]:
    """Put as many operations as possible into each partition, in an order in which every input exists.

    A kernel that needs nothing of the open partition runs before it.
    """
    steps: list[list[XnnNode] | Kernel] = []
    pending: list[XnnNode] = []
    for node in nodes:
        if isinstance(node, XnnNode):
            pending.append(node)
            continue
        computed = {step.output for step in pending}
        if any(argument in computed for argument in node.arguments if isinstance(argument, Tensor)):
            steps.append(pending)
            pending = []
        steps.append(node)
    if pending:
        steps.append(pending)
    return [step if isinstance(step, Kernel) else _partition(step, steps, results) for step in steps]


def _partition(own: list[XnnNode], steps: list[list[XnnNode] | Kernel], results: list[Tensor]) -> Partition:
    computed = {node.output for node in own}
    elsewhere = set(results)
    for step in steps:
        if isinstance(step, Kernel):
            elsewhere.update(value for value in step.arguments if isinstance(value, Tensor))
        elif step is not own:
            elsewhere.update(value for node in step for value in node.tensors if isinstance(value, Tensor))
    needed = dict.fromkeys(value for node in own for value in node.tensors if value not in computed)
    return Partition(tuple(own), tuple(needed), tuple(node.output for node in own if node.output in elsewhere))
