"""The header of a GGUF file: metadata and the table of tensors, with every number checked before it is used.

The format is specified in ggml's docs/gguf.md. The ``gguf`` package has a reader too, but that one trusts its file: an
array of 2**60 bytes makes it fill the memory, and it makes three objects per vocabulary entry (2.5 s and 200 MB for
SmolLM2). It stays the oracle in the tests.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# code of a value's type -> struct format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# Far above any real model (Gemma has 262 thousand tokens, half a million merges): more means a damaged file.
_MOST_ENTRIES = 1 << 16
_LONGEST_ARRAY = 1 << 22
_LONGEST_STRING = 1 << 24
_MOST_DIMENSIONS = 4

# code of a tensor's type -> (name, values in a block, bytes of a block); ggml.h, enum ggml_type
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``kind`` is a name in TENSOR_TYPES, ``shape`` is in numpy's order, offsets in bytes."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key (numbers, strings, lists of them) and tensors by name, as the file has them."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def read_header(data: mmap.mmap | bytes, path: Path) -> GgufHeader:
    """Parse and check a header; raises InputError if the file is not sound. ``path`` is for messages only."""
    cursor = _Cursor(data, path)
    tensor_count, field_count = _read_counts(cursor)
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.name()
        if key in fields:
            raise cursor.damaged(f"has the key {key} twice")
        fields[key] = _read_value(cursor, cursor.number("I"))
    entries = [_read_entry(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"has the alignment {alignment!r}, which is no power of two")
    return GgufHeader(fields, _place_tensors(cursor, entries, alignment))


class _Cursor:
    """Walks over the bytes of a header and never past their end."""

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        self.data = data
        self.position = 0
        self.path = path

    def damaged(self, what: str) -> InputError:
        """The error to raise when the file is not sound."""
        return InputError(f"{self.path}: {what}; the file is damaged or incomplete, download or convert it again")

    def require(self, size_bytes: int) -> None:
        """Raise InputError if fewer bytes are left."""
        if size_bytes > len(self.data) - self.position:
            raise self.damaged("ends inside its header")

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """That many little-endian numbers of one struct format."""
        layout = struct.Struct(f"<{count}{code}")
        self.require(layout.size)
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def number(self, code: str) -> Any:
        """One little-endian number."""
        return self.numbers(code, 1)[0]

    def name(self) -> str:
        """A string that can stand in a message."""
        name = self.string()
        if not name.isprintable():
            raise self.damaged(f"has the name {name[:40]!r} in its header")
        return name

    def string(self) -> str:
        """A length and as many bytes of UTF-8."""
        length = self.number("Q")
        if length > _LONGEST_STRING:
            raise self.damaged(f"claims a string of {length} bytes in its header")
        self.require(length)
        raw = self.data[self.position : self.position + length]
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged("has a string that is not UTF-8 in its header") from error


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != b"GGUF":
        raise InputError(
            f"{cursor.path}: is not a GGUF file (it does not start with GGUF); give the model's .gguf file"
        )
    cursor.position = 4
    version = cursor.number("I")
    if version & 0xFFFF == 0:  # the number's bytes are the wrong way round
        raise InputError(
            f"{cursor.path}: is a big-endian GGUF file; convert it with gguf-py's gguf_convert_endian.py first"
        )
    if version not in _VERSIONS:
        raise InputError(f"{cursor.path}: GGUF version {version} is not supported, 2 and 3 are; convert it again")
    tensor_count, field_count = cursor.numbers("Q", 2)
    if max(tensor_count, field_count) > _MOST_ENTRIES:
        raise cursor.damaged(f"claims {tensor_count} tensors and {field_count} keys")
    return tensor_count, field_count


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        raise cursor.damaged(f"has a value of the unknown type {kind} in its header")
    element, count = cursor.number("I"), cursor.number("Q")
    if count > _LONGEST_ARRAY:
        raise cursor.damaged(f"claims an array of {count} values in its header")
    if element in _SCALARS:
        return list(cursor.numbers(_SCALARS[element], count))
    if element != _STRING:
        raise cursor.damaged(f"has an array of the unknown type {element} in its header")
    cursor.require(8 * count)  # the lengths alone
    return [cursor.string() for _ in range(count)]


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape in numpy's order, type, offset from the start of the data) of one tensor."""
    name = cursor.name()
    dimensions = cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.damaged(f"gives the tensor {name!r} {dimensions} dimensions")
    shape = cursor.numbers("Q", dimensions)[::-1]  # the file has the fastest dimension first
    return name, shape, cursor.number("I"), cursor.number("Q")


def _place_tensors(
    cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int
) -> dict[str, TensorInfo]:
    """Tensors by name. As in llama.cpp they must lie one behind the other, each padded to the alignment."""
    tensors: dict[str, TensorInfo] = {}
    start = _aligned(cursor.position, alignment)
    expected = 0
    for name, shape, code, offset in entries:
        if code not in TENSOR_TYPES:
            raise _unsupported_type(cursor.path, name, code)
        kind, block, block_bytes = TENSOR_TYPES[code]
        if name in tensors or not shape or 0 in shape or shape[-1] % block:
            raise cursor.damaged(f"has a tensor {name!r} twice, or of the impossible shape {list(shape)} for {kind}")
        size = math.prod(shape) // block * block_bytes
        if offset != expected or start + offset + size > len(cursor.data):
            raise cursor.damaged(f"does not hold all of the tensor {name!r} ({size} bytes at {start + offset})")
        expected += _aligned(size, alignment)
        tensors[name] = TensorInfo(kind, shape, start + offset, size)
    return tensors


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _unsupported_type(path: Path, name: str, code: int) -> InputError:
    from gguf.constants import GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(code).name
    except ValueError:
        kind = f"number {code}"
    supported = ", ".join(row[0] for row in TENSOR_TYPES.values())
    return InputError(f"{path}: tensor {name} has the type {kind}, which is not supported; supported are: {supported}")
