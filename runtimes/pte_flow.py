"""The operations of a .pte as one flow of values, across the runtime's kernels and XNNPACK's graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..export.to_executorch import KERNELS
from .pte_file import Graph, Pte

ANY = object()  # matches every input


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    order   its place in the program
    inputs  names of values: a value is called the same wherever it is used
    node    its fields: a call of the program's schema, or a node of XNNPACK's
    graph   the graph that it belongs to; None for a kernel
    """

    op: str
    order: int
    inputs: tuple[Hashable, ...]
    output: Hashable
    node: Mapping[str, Any]
    graph: Graph | None

    def value(self, field: str) -> dict[str, Any]:
        """The XNNPACK value whose number this field of the node holds."""
        assert self.graph is not None
        return self.graph.values[self.node[field]]


class PteFlow:
    """The operations of a .pte, each to be taken once."""

    def __init__(self, pte: Pte) -> None:
        """Raises InputError if something runs outside XNNPACK that has no business there."""
        self.pte = pte
        self._waiting: dict[str, list[Operation]] = {}
        for operation in self._operations():
            self._waiting.setdefault(operation.op, []).append(operation)

    def error(self, what: str, reason: str) -> InputError:
        """A finding as the user reads it."""
        return InputError(f"{self.pte.path}: {what}: {reason}; export the model again")

    def _operations(self) -> Iterator[Operation]:
        order = 0
        for number, call in enumerate(self.pte.instructions()):
            if call["type"] == "KernelCall":
                yield self._kernel(order, call)
                order += 1
            elif call["type"] == "DelegateCall":
                for operation in self._delegated(order, number, call):
                    yield operation
                    order += 1
            else:
                raise self.error("forward", f"it has an instruction {call['type']}, which we never write")

    def _kernel(self, order: int, call: Mapping[str, Any]) -> Operation:
        name, arguments = self.pte.kernel_name(call["op_index"]), call["args"]
        if name not in KERNELS:
            known = "dequant" in name or "quantize" in name
            hint = ": weights without int8 activations, which ExecuTorch computes wrong" if known else ""
            raise self.error(name, f"it runs outside XNNPACK{hint}")
        if len(arguments) < 2:
            raise self.error(name, "its call is incomplete")
        return Operation(name, order, tuple(arguments[:-1]), arguments[-1], call, None)

    def _delegated(self, order: int, number: int, call: Mapping[str, Any]) -> Iterator[Operation]:
        """A delegate's operations; its external values are called as the program calls them."""
        graph = self.pte.graph(call["delegate_index"])

        def called(value: int) -> Hashable:
            if value not in graph.values:
                raise self.error(f"delegate {call['delegate_index']}", f"it has no value {value}")
            external = graph.values[value]["external_id"]
            argument: Hashable = call["args"][external] if external < len(call["args"]) else (number, value)
            return argument

        for place, node in enumerate(graph.nodes):
            fields = [key for key in ("input_id", "input1_id", "input2_id") if key in node]
            inputs = tuple(called(node[field]) for field in fields)
            yield Operation(node["type"], order + place, inputs, called(node["output_id"]), node, graph)

    def find(
        self, op: str, inputs: tuple[object, ...], accept: Callable[[Operation], bool] | None = None
    ) -> Operation | None:
        """The next operation of this kind whose inputs begin like these (ANY matches all); it is not offered again."""
        waiting = self._waiting.get(op, [])
        for operation in waiting:
            fits = all(want is ANY or want == got for want, got in zip(inputs, operation.inputs, strict=False))
            if fits and len(operation.inputs) >= len(inputs) and (accept is None or accept(operation)):
                waiting.remove(operation)
                return operation
        return None

    def first(self, op: str, sources: Sequence[Hashable], accept: Callable[[Operation], bool]) -> Operation | None:
        """The next operation of this kind whose first input is one of the sources; it is not offered again."""
        waiting = self._waiting.get(op, [])
        found = next((o for o in waiting if o.inputs[0] in sources and accept(o)), None)
        if found:
            waiting.remove(found)
        return found

    def take(
        self, op: str, inputs: tuple[object, ...], what: str, accept: Callable[[Operation], bool] | None = None
    ) -> Operation:
        """Like ``find``, but an InputError names ``what`` if there is none."""
        found = self.find(op, inputs, accept)
        if found is None:
            raise self.error(what, f"the model has {op.removeprefix('XNN')} here, the file has not")
        return found

    def left_over(self) -> list[str]:
        """Operations that nobody asked for."""
        return [operation.op for waiting in self._waiting.values() for operation in waiting]

    def number(self, value: Hashable) -> float | None:
        """A number among the program's values; None for one that stands for a default."""
        content = self.pte.value(_index(value))
        return next((float(content[key]) for key in ("int_val", "double_val", "bool_val") if key in content), None)

    def is_null(self, value: Hashable) -> bool:
        """Whether an argument is left out."""
        return bool(self.pte.value(_index(value))["type"] == "Null")

    def dims(self, value: Hashable) -> list[int]:
        """The shape of one of the program's tensors."""
        return [int(size) for size in self.pte.value(_index(value)).get("sizes", [])]


def _index(value: Hashable) -> int:
    assert isinstance(value, int), value
    return value
