"""Reading flatbuffers by their published schema, with every offset checked: a damaged file must not crash us.

Format: https://flatbuffers.dev/internals/. A table is decoded to a dict of the fields that it holds and the defaults
of those it does not; a union to the dict of its table with its type under "type"; an enum to its name.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = {
    "bool": "?", "byte": "b", "ubyte": "B", "int8": "b", "uint8": "B", "short": "h", "ushort": "H", "int16": "h",
    "uint16": "H", "int": "i", "uint": "I", "int32": "i", "uint32": "I", "long": "q", "ulong": "Q", "int64": "q",
    "uint64": "Q", "float": "f", "float32": "f", "double": "d", "float64": "d",
}  # fmt: skip
_DECLARATION = re.compile(r"(table|enum|union)\s+(\w+)\s*(?::\s*(\w+))?\s*\{(.*?)\}", re.DOTALL)
_FIELD = re.compile(r"(\w+)\s*:\s*(\[?\w+\]?)\s*(?:=\s*([\w.+-]+))?\s*(\([^)]*\))?")


class FlatbufferError(ValueError):
    """Bytes that are not a flatbuffer of the schema."""


@dataclass(frozen=True)
class _Field:
    name: str
    kind: str  # a scalar, "string", or the name of a table, enum or union
    vector: bool
    default: str | None
    slot: int


@dataclass(frozen=True)
class Schema:
    """Tables, enums and unions of one or more .fbs files."""

    identifier: bytes
    root: str
    tables: Mapping[str, tuple[_Field, ...]]
    enums: Mapping[str, tuple[str, Mapping[int, str]]]  # -> (scalar, number -> name)
    unions: Mapping[str, Mapping[int, tuple[str, str]]]  # -> number -> (name, its table)


def parse_schema(*paths: Path) -> Schema:
    """Read .fbs files; the last one says which table is the root."""
    text = "\n".join(re.sub(r"//[^\n]*", "", path.read_text()) for path in paths)
    declared = [(match[1], match[2], match[3], match[4]) for match in _DECLARATION.finditer(text)]
    enums = {name: (base, _members(body)) for kind, name, base, body in declared if kind == "enum"}
    unions = {name: _alternatives(body) for kind, name, _, body in declared if kind == "union"}
    tables = {name: _fields(body, unions) for kind, name, _, body in declared if kind == "table"}
    identifier = re.findall(r'file_identifier\s+"(\w{4})"', text)[-1]
    return Schema(identifier.encode(), re.findall(r"root_type\s+(\w+)", text)[-1], tables, enums, unions)


def _members(body: str) -> dict[int, str]:
    members, following = {}, 0
    for entry in filter(None, (part.strip() for part in body.split(","))):
        name, _, value = (part.strip() for part in entry.partition("="))
        following = int(value) if value else following
        members[following] = name
        following += 1
    return members


def _alternatives(body: str) -> dict[int, tuple[str, str]]:
    pairs = [part.partition(":") for part in body.split(",") if part.strip()]
    return {i + 1: (name.strip(), (table or name).strip()) for i, (name, _, table) in enumerate(pairs)}


def _fields(body: str, unions: Mapping[str, Any]) -> tuple[_Field, ...]:
    """Fields in the order of their slots; a union has two, its type and its table."""
    fields, slot = [], 0
    for statement in filter(None, (part.strip() for part in body.split(";"))):
        match = _FIELD.match(statement)
        assert match, statement
        kind = match[2].strip("[]")
        slot += kind in unions
        if "deprecated" not in (match[4] or ""):
            fields.append(_Field(match[1], kind, match[2].startswith("["), match[3], slot))
        slot += 1
    return tuple(fields)


class Decoder:
    """Decodes one buffer."""

    def __init__(self, schema: Schema, data: bytes | memoryview) -> None:
        self._schema = schema
        self._data = memoryview(data)
        self._budget = len(self._data)  # tables may share parts, so that a damaged file could unfold without end

    def root(self) -> dict[str, Any]:
        """The whole content. Raises FlatbufferError."""
        if bytes(self._data[4:8]) != self._schema.identifier:
            raise FlatbufferError(f"identifier {bytes(self._data[4:8])!r} instead of {self._schema.identifier!r}")
        try:
            return self._table(self._schema.root, self._offset(0))
        except (UnicodeDecodeError, RecursionError) as error:
            raise FlatbufferError(str(error)) from error

    def _read(self, code: str, position: int) -> Any:
        size = struct.calcsize(code)
        if not 0 <= position <= len(self._data) - size:
            raise FlatbufferError(f"offset {position} lies outside of {len(self._data)} bytes")
        return struct.unpack_from("<" + code, self._data, position)[0]

    def _offset(self, position: int) -> int:
        """Where the offset at this position points to."""
        return position + int(self._read("I", position))

    def _table(self, name: str, position: int) -> dict[str, Any]:
        self._budget -= 1
        if self._budget < 0:
            raise FlatbufferError("its tables refer to each other without end")
        slots = position - int(self._read("i", position))
        size = int(self._read("H", slots))
        places = {}
        for field in self._schema.tables[name]:
            entry = 4 + 2 * field.slot
            distance = int(self._read("H", slots + entry)) if entry + 2 <= size else 0
            places[field.name] = position + distance if distance else None
        return {
            field.name: self._union(field, places[field.name], slots, size, position)
            if field.kind in self._schema.unions
            else self._field(field, places[field.name])
            for field in self._schema.tables[name]
        }

    def _union(self, field: _Field, place: int | None, slots: int, size: int, position: int) -> dict[str, Any] | None:
        entry = 4 + 2 * (field.slot - 1)
        distance = int(self._read("H", slots + entry)) if entry + 2 <= size else 0
        number = int(self._read("B", position + distance)) if distance else 0
        if not number or place is None:
            return None
        alternatives = self._schema.unions[field.kind]
        if number not in alternatives:
            raise FlatbufferError(f"{field.kind} has no alternative {number}")
        name, table = alternatives[number]
        return {"type": name} | self._table(table, self._offset(place))

    def _field(self, field: _Field, place: int | None) -> Any:
        if field.vector:
            return [] if place is None else self._vector(field.kind, self._offset(place))
        code = self._code(field.kind)
        if code is None:
            return None if place is None else self._object(field.kind, self._offset(place))
        if place is not None:
            return self._named(field.kind, self._read(code, place))
        if field.default is not None and not field.default[0].isdigit() and field.default[0] != "-":
            return field.default if field.kind in self._schema.enums else field.default == "true"
        number = float(field.default or 0) if code in "fd" else int(field.default or 0)
        return self._named(field.kind, bool(number) if code == "?" else number)

    def _code(self, kind: str) -> str | None:
        return _SCALARS.get(self._schema.enums[kind][0] if kind in self._schema.enums else kind)

    def _named(self, kind: str, number: Any) -> Any:
        if kind not in self._schema.enums:
            return number
        names = self._schema.enums[kind][1]
        if number not in names:
            raise FlatbufferError(f"{kind} has no value {number}")
        return names[number]

    def _object(self, kind: str, position: int) -> Any:
        if kind != "string":
            return self._table(kind, position)
        return bytes(self._bytes(position, 1)).decode()

    def _bytes(self, position: int, size: int) -> memoryview:
        """The content of a vector whose elements have this size."""
        count = int(self._read("I", position))
        if count * size > len(self._data) - position - 4:
            raise FlatbufferError(f"{count} elements at {position} do not fit into {len(self._data)} bytes")
        return self._data[position + 4 : position + 4 + count * size]

    def _vector(self, kind: str, position: int) -> list[Any]:
        code = self._code(kind)
        if code is not None:
            content = self._bytes(position, struct.calcsize(code))
            return [self._named(kind, value) for (value,) in struct.iter_unpack(f"<{code}", content)]
        count = len(self._bytes(position, 4)) // 4
        return [self._object(kind, self._offset(position + 4 + 4 * i)) for i in range(count)]
