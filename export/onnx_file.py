"""Writing an ONNX file whose tensors live beside it, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MICROSOFT = "com.microsoft"

_TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}
_INLINE_BYTES = 1024  # smaller tensors are easier to read inside the graph
_PAGE = 4096  # a tensor that starts on a page can be memory-mapped


class OnnxFile:
    """Collects nodes and streams tensors to ``folder/model.onnx.data``; ``save`` writes ``folder/model.onnx``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = (folder / DATA_FILE).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self._places: dict[str, tuple[str, int, int]] = {}  # name -> (dtype, offset, bytes)

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Add a node named after its first output; returns that output."""
        self._nodes.append(
            helper.make_node(op, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def small(self, name: str, array: NDArray[Any]) -> str:
        """Add a tensor inside the graph."""
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def tensor(self, name: str, shape: Sequence[int], parts: Iterable[NDArray[Any]]) -> str:
        """Add a tensor of this shape whose bytes are those of the parts, one after the other."""
        first = next(iterator := iter(parts))
        dtype = first.dtype.name
        if np.prod(shape) * first.itemsize < _INLINE_BYTES:
            whole = np.concatenate([part.reshape(-1) for part in (first, *iterator)])
            return self.small(name, whole.reshape(tuple(shape)))
        self._data.write(b"\0" * (-self._data.tell() % _PAGE))
        start = self._data.tell()
        for part in (first, *iterator):
            assert part.dtype.name == dtype
            self._data.write(np.ascontiguousarray(part).data)
        return self._external(name, shape, dtype, start, self._data.tell() - start)

    def alias(self, name: str, of: str, shape: Sequence[int]) -> str:
        """The bytes of an external tensor once more, under another name and shape: stored once in the file."""
        return self._external(name, shape, *self._places[of])

    def _external(self, name: str, shape: Sequence[int], dtype: str, start: int, size: int) -> str:
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert expected == size, f"{name}: {size} bytes do not make a tensor of shape {tuple(shape)}"
        tensor = TensorProto(name=name, data_type=_TYPES[dtype], data_location=TensorProto.EXTERNAL)
        tensor.dims.extend(shape)
        for key, value in (("location", DATA_FILE), ("offset", start), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self._tensors.append(tensor)
        self._places[name] = (dtype, start, size)
        return name

    def save(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], note: dict[str, str]) -> None:
        """Write the graph; ``note`` goes into the model's metadata."""
        self._data.close()
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, self._tensors)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=10,
            producer_name="pocketlm",
        )
        helper.set_model_props(model, note)
        onnx.save(model, self._folder / MODEL_FILE)

    def close(self) -> None:
        """Release the data file when writing was given up."""
        self._data.close()


def value_info(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output of the graph; a string is the name of a dimension that varies."""
    return helper.make_tensor_value_info(name, dtype, list(shape))
