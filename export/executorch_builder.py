"""Recording operations of a program for ExecuTorch, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .executorch_file import PteFile
from .executorch_graph import Argument, Cache, Constant, Kernel, Node, Tensor, XnnNode


class Builder:
    """The operations so far; constants go to the file as they are met."""

    def __init__(self, file: PteFile) -> None:
        self.file = file
        self.nodes: list[Node] = []

    def kernel(self, op: str, arguments: Sequence[Argument], dims: Sequence[int], dtype: str = "float32") -> Tensor:
        """A call of one of the runtime's kernels."""
        out = Tensor(tuple(dims), dtype)
        self.nodes.append(Kernel(op, tuple(arguments), out))
        return out

    def xnn(
        self, op: str, inputs: dict[str, Any], dims: Sequence[int], dtype: str = "float32", **fields: Any
    ) -> Tensor:
        """An operation of XNNPACK's."""
        out = Tensor(tuple(dims), dtype)
        self.nodes.append(XnnNode(op, inputs, out, fields))
        return out

    def unary(self, op: str, x: Tensor) -> Tensor:
        """Of one input, element by element."""
        return self.xnn(op, {"input_id": x}, x.dims)

    def binary(
        self, op: str, left: Tensor | Constant, right: Tensor | Constant, dims: tuple[int, ...] | None = None
    ) -> Tensor:
        """Element by element, as numpy broadcasts; ``dims`` of the result are those of ``left`` if not given."""
        return self.xnn(op, {"input1_id": left, "input2_id": right}, left.dims if dims is None else dims)

    def number(self, op: str, x: Tensor, value: float) -> Tensor:
        """x and a number."""
        return self.binary(op, x, self.array(np.array([value], np.float32)))

    def array(self, array: NDArray[Any]) -> Constant:
        """A constant of the program."""
        index = self.file.constant(array.nbytes, lambda: [array])
        return Constant(index, array.shape, array.dtype.name)

    def reshape(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """XNNPACK too writes 0 for the one dimension that follows from the others."""
        return self.xnn("XNNStaticReshape", {"input_id": x}, dims, num_dims=len(dims), new_shape=list(dims))

    def transpose(self, x: Tensor | Cache, order: tuple[int, ...]) -> Tensor:
        """Axes in a new order."""
        dims = tuple(x.dims[axis] for axis in order)
        return self.xnn("XNNStaticTranspose", {"input_id": x}, dims, num_dims=len(dims), perm=list(order))

    def slice(self, x: Tensor, axis: int, start: int, size: int) -> Tensor:
        """XNNPACK takes size 0 for: all of it."""
        offsets, sizes = [0] * len(x.dims), [0] * len(x.dims)
        offsets[axis], sizes[axis] = start, size
        dims = (*x.dims[:axis], size, *x.dims[axis + 1 :])
        return self.xnn("XNNStaticSlice", {"input_id": x}, dims, num_dims=len(dims), offsets=offsets, sizes=sizes)
