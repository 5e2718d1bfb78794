"""The constants of an ML Program, as its description and weight.bin have them; read from the file when asked for.

The layout of weight.bin is coremltools' (mlmodel/src/MILBlob/Blob/StorageFormat.hpp): each blob is a record of 64 bytes
(marker, type, size in bytes, where the data begin), and data in row order, the first of two int4 in the low nibble.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.store import Dense
from ..quantize.tensor import QuantizedTensor

WEIGHTS_FILE = "@model_path/weights/weight.bin"

Key = tuple[int, ...]  # where a constant's parts begin in weight.bin: equal for functions that share it
Array = NDArray[Any]

# name in MIL.proto -> name in the program's text
TYPE_NAMES: Mapping[str, str] = {
    "BOOL": "bool", "STRING": "string", "FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64",
    "INT4": "int4", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT1": "uint1", "UINT2": "uint2", "UINT3": "uint3", "UINT4": "uint4", "UINT6": "uint6",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
}  # fmt: skip
_NUMPY = {
    "bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "int8": np.int8, "int16": np.int16,
    "int32": np.int32, "int64": np.int64, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32,
    "uint64": np.uint64,
}  # fmt: skip
_RECORD = struct.Struct("<IIQQ")
_MARKER = 0xDEADBEEF
_BLOB_TYPES = {
    "fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int4": 8, "uint1": 9, "uint2": 10,
    "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15,
}  # fmt: skip
_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


@dataclass(frozen=True)
class Blob:
    """Numbers in weight.bin, mapped into memory when they are read, and as long as they are used."""

    path: Path
    start: int  # of the data, bytes
    offset: int  # of the record, by which programs name the blob
    kind: str
    shape: tuple[int, ...]

    def read(self) -> Array:
        """All numbers; int4 is unpacked to int8."""
        if self.kind == "int4":
            return _unpack(self._map(np.uint8, (prod(self.shape) + 1) // 2), self.shape)
        return self._map(self.dtype, self.shape)

    @property
    def dtype(self) -> Any:
        """As ``read`` gives it; raises ValueError for numbers below 8 bits but int4."""
        if self.kind == "int4":
            return np.int8
        if self.kind not in _NUMPY:
            raise ValueError(f"constants of type {self.kind} are none that pocketlm writes")
        return _NUMPY[self.kind]

    def rows(self, indices: NDArray[np.integer[Any]]) -> Array:
        """Some rows, of which alone the pages are read, unless they begin in the middle of a byte."""
        if self.kind != "int4" or prod(self.shape[1:]) % 2:
            picked: Array = self.read()[indices]
            return picked
        packed = self._map(np.uint8, (self.shape[0], prod(self.shape[1:]) // 2))[indices]
        return _unpack(packed, (len(indices), *self.shape[1:]))

    def _map(self, dtype: Any, shape: int | tuple[int, ...]) -> Array:
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        return np.asarray(np.memmap(self.path, dtype, "r", self.start, shape))


@dataclass(frozen=True)
class Blocks:
    """Codes with scales for blocks of columns."""

    codes: Blob  # int4 or int8 (out, in)
    scales: Blob | Array  # (out, in / group)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // int(self.scales.shape[1])

    def read(self, indices: NDArray[np.integer[Any]] | None = None) -> QuantizedTensor:
        """The canonical tensor, or one of some rows."""
        codes = self.codes.read() if indices is None else self.codes.rows(indices)
        scales = self.scales.read() if isinstance(self.scales, Blob) else self.scales
        scales = scales if indices is None else scales[indices]
        return QuantizedTensor(codes, scales.astype(np.float32), 4 if self.codes.kind == "int4" else 8)


@dataclass(frozen=True)
class Constant:
    """A constant of a program. Quantised ones are as canonical tensors are; numbers and text are as numpy has them."""

    content: Blocks | Blob | Array | str
    kind: str
    key: Key | None

    @property
    def value(self) -> QuantizedTensor | Dense | Array | str:
        """What it holds, read anew each time."""
        return self.content.read() if isinstance(self.content, (Blocks, Blob)) else self.content

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions; of text (), though there may be several in an array."""
        if isinstance(self.content, Blocks):
            return self.content.codes.shape
        return () if isinstance(self.content, str) else self.content.shape

    @property
    def half(self) -> bool:
        """Whether the program takes it as fp16."""
        return self.kind == "fp16"

    @property
    def group(self) -> int | None:
        """Columns that share a scale; None if it is not quantised."""
        return self.content.group if isinstance(self.content, Blocks) else None

    def rows(self, indices: NDArray[np.integer[Any]]) -> QuantizedTensor | Array:
        """Some rows of a table of numbers."""
        assert not isinstance(self.content, str)
        if isinstance(self.content, Blocks):
            return self.content.read(indices)
        picked: Array = self.content.rows(indices) if isinstance(self.content, Blob) else self.content[indices]
        return picked


def dense_constant(value: Any, weights: Path) -> Constant:
    """A constant from the message ``Value`` of MIL.proto. Raises ValueError if the file does not hold it."""
    kind, shape = tensor_type(value.type)
    content = read_value(value, weights)
    assert isinstance(content, str) or content.shape == shape
    return Constant(content, kind, (content.offset,) if isinstance(content, Blob) else None)


def block_constant(data: Any, scale: Any, declared: Any, weights: Path) -> Constant:
    """A constant from the inputs of constexpr_blockwise_shift_scale, and the type that the program gives the result.

    Raises ValueError for what canonical tensors cannot be: blocks of rows.
    """
    codes, scales = read_value(data, weights), read_value(scale, weights)
    kind, shape = tensor_type(declared)
    sound = (
        isinstance(codes, Blob)
        and codes.kind in ("int4", "int8")
        and not isinstance(scales, str)
        and len(shape) == 2
        and codes.shape == shape
        and scales.shape[:1] == shape[:1]
        and len(scales.shape) == 2
        and scales.shape[1] > 0
        and shape[1] % scales.shape[1] == 0
        and tensor_type(scale.type)[0] == kind
    )
    if not sound:
        raise ValueError("a weight is not quantised the way pocketlm does it")
    assert isinstance(codes, Blob)
    assert not isinstance(scales, str)
    offsets = [codes.offset, *([scales.offset] if isinstance(scales, Blob) else [])]
    return Constant(Blocks(codes, scales), kind, tuple(sorted(offsets)))


def tensor_type(message: Any) -> tuple[str, tuple[int, ...]]:
    """Element type and shape, -1 where it is flexible, of a ``ValueType``; of a state, those of what it holds."""
    if message.WhichOneof("type") == "stateType":
        return tensor_type(message.stateType.wrappedType)
    if message.WhichOneof("type") != "tensorType":
        raise ValueError(f"a value of {message.WhichOneof('type')} is none that pocketlm writes")
    found = message.tensorType
    name = type(found).DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number[found.dataType].name
    if name not in TYPE_NAMES or found.rank != len(found.dimensions):
        raise ValueError(f"a value of type {name} and rank {found.rank} is none that pocketlm writes")
    sizes = (
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else -1
        for dimension in found.dimensions
    )
    return TYPE_NAMES[name], tuple(map(int, sizes))


def read_value(value: Any, weights: Path) -> Blob | Array | str:
    """What a ``Value`` holds, or where it lies in the file of weights."""
    kind, shape = tensor_type(value.type)
    if value.WhichOneof("value") == "blobFileValue":
        return _find_blob(weights, value.blobFileValue, kind, shape)
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if value.immediateValue.WhichOneof("value") != "tensor" or field is None:
        raise ValueError("a constant is neither numbers nor text")
    return _immediate(getattr(tensor, field).values, kind, shape)


def _immediate(values: bytes | Sequence[Any], kind: str, shape: tuple[int, ...]) -> Array | str:
    if kind == "string":
        return str(values[0]) if shape == () else np.array([str(text) for text in values]).reshape(shape)
    if kind in _BITS:
        raise ValueError(f"a constant of type {kind} outside weight.bin is none that pocketlm writes")
    if isinstance(values, bytes):
        return np.frombuffer(values, _NUMPY[kind]).reshape(shape)
    return np.array(values, _NUMPY[kind]).reshape(shape)


def _find_blob(path: Path, place: Any, kind: str, shape: tuple[int, ...]) -> Blob:
    """Raises ValueError unless the file has a blob of that type and size there."""
    if place.fileName != WEIGHTS_FILE:  # coremltools looks at the last part of a path only, Core ML at all of it
        raise ValueError(f"a constant lies in {place.fileName}")
    if -1 in shape:
        raise ValueError("a constant in weight.bin has no fixed shape")
    bits = _BITS.get(kind, 0) or 8 * np.dtype(_NUMPY.get(kind, np.void)).itemsize
    with path.open("rb") as file:
        file.seek(place.offset)
        record = file.read(_RECORD.size)
        end = file.seek(0, 2)
    if len(record) < _RECORD.size:
        raise ValueError(f"weight.bin ends before the blob at {place.offset}")
    marker, blob_type, size, start = _RECORD.unpack(record)
    if (marker, blob_type, size) != (_MARKER, _BLOB_TYPES.get(kind), -(-prod(shape) * bits // 8)):
        raise ValueError(f"weight.bin has no blob of {prod(shape)} {kind} at {place.offset}")
    if start + size > end:
        raise ValueError(f"weight.bin ends within the blob at {place.offset}")
    return Blob(path, start, place.offset, kind, shape)


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Two's complement of 4 bits, the first of two in the low nibble -> int8."""
    flat = packed.reshape(-1)
    codes = np.empty(2 * flat.size, np.int8)
    np.right_shift((flat << np.uint8(4)).view(np.int8), np.int8(4), out=codes[0::2])
    np.right_shift(flat.view(np.int8), np.int8(4), out=codes[1::2])
    return codes[: prod(shape)].reshape(shape)
