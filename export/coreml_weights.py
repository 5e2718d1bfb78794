"""The weights of a Core ML package, streamed: coremltools holds every constant in memory until it has written them all.

So it is given arrays without content (``stand_in``), one for all weights of a type and a shape, writes its package with
those, and the file of weights is written again here, with the true content where a constant stands for a tensor. The
layout is coremltools' own (mlmodel/src/MILBlob/Blob/StorageFormat.hpp): a header of 64 bytes, then for each blob a
record of 64 bytes and its data, each starting at a multiple of 64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DATA = Path("Data", "com.apple.CoreML")
_HEADER = struct.Struct("<II56x")  # blobs, version of the layout
_RECORD = struct.Struct("<IIQQ40x")  # marker, type, size of the data, where they start; all else is zero for our types
_MARKER = 0xDEADBEEF
_VERSION = 2
_ALIGNMENT = 64
_LARGE = 1 << 16  # bytes; smaller constants are left to coremltools

Array = NDArray[Any]
Content = Callable[[], Iterable[Array]]  # gives the bytes of one constant, in pieces


def stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def is_stand_in(array: Array) -> bool:
    """Whether an array was made by ``stand_in``."""
    return array.size > 1 and not any(array.strides)


def is_large(size_bytes: int) -> bool:
    """Whether a constant of this size is to be streamed."""
    return size_bytes >= _LARGE


def fill_in(package: Path, functions: Sequence[str], contents: Mapping[tuple[str, str], Content]) -> None:
    """Give a saved package its weights.

    functions  names of its functions, in the order in which coremltools wrote them
    contents   (name of a value, "data", "scale" or "val") -> what a stand-in stands for
    """
    description = package / _DATA / "model.mlmodel"
    spec = read_description(description)
    old = package / _DATA / "weights" / "weight.bin"
    new = old.with_name("weight.bin.new")
    with old.open("rb") as source, new.open("wb", buffering=1 << 20) as file:
        blobs = _Blobs(source, file)
        for name in functions:
            (block,) = spec.mlProgram.functions[name].block_specializations.values()
            for operation in block.operations:
                for key, value in _file_values(operation):
                    output = operation.outputs[0].name
                    value.offset = blobs.place(value.offset, (output, key), contents.get((output, key)))
        blobs.finish()
    new.replace(old)
    description.write_bytes(spec.SerializeToString())


def read_description(path: Path) -> Any:
    """The protobuf message of a file model.mlmodel."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    return spec


def _file_values(operation: Any) -> list[tuple[str, Any]]:
    """The values of an operation that lie in the file of weights, in the order in which coremltools wrote them."""
    found = [("val", operation.attributes["val"])] if "val" in operation.attributes else []
    for key in sorted(operation.inputs):
        for argument in operation.inputs[key].arguments:
            if argument.WhichOneof("binding") == "value":
                found.append((key, argument.value))
    return [(key, value.blobFileValue) for key, value in found if value.WhichOneof("value") == "blobFileValue"]


class _Blobs:
    """Writes each blob once, whoever uses it."""

    def __init__(self, source: Any, file: Any) -> None:
        self._source, self._file = source, file
        self._places: dict[object, int] = {}
        file.write(_HEADER.pack(0, _VERSION))

    def place(self, old: int, name: tuple[str, str], content: Content | None) -> int:
        """Where a constant lies now that was at ``old``, with its own content if it had a stand-in's."""
        key = old if content is None else name
        if key not in self._places:
            marker, kind, size, start = _RECORD.unpack(self._read(old, _RECORD.size).tobytes())
            assert marker == _MARKER, f"no blob at {old}"
            self._places[key] = self._file.tell()
            self._file.write(_RECORD.pack(_MARKER, kind, size, self._file.tell() + _RECORD.size))
            written = sum(map(self._file.write, map(_bytes, (content or (lambda: [self._read(start, size)]))())))
            assert written == size, f"{name[0]}: {written} bytes for {size}"
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        return self._places[key]

    def _read(self, start: int, size: int) -> Array:
        self._source.seek(start)
        return np.frombuffer(self._source.read(size), np.uint8)

    def finish(self) -> None:
        """Say in the header how many blobs there are."""
        self._file.seek(0)
        self._file.write(_HEADER.pack(len(self._places), _VERSION))


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")
