"""What is in a .pte, by ExecuTorch's and XNNPACK's own schemas. It need not be one of ours."""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.executorch_schema import PROGRAM_SCHEMA, XNNPACK_SCHEMA, package_folder
from .flatbuffer import Decoder, FlatbufferError, Schema, parse_schema

_HEADER = struct.Struct("<4sIQQQ")  # magic, length, size of program, start of segments, size of segments
_XNN_HEADER = struct.Struct("<4s4sHIIIQ")
DTYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "DOUBLE": np.float64, "CHAR": np.int8, "BYTE": np.uint8, "LONG": np.int64,
}  # fmt: skip
XNNPACK = "XnnpackBackend"
_CONTRADICTIONS = (
    LookupError, ArithmeticError, TypeError, ValueError, AttributeError, AssertionError, StopIteration,
)  # fmt: skip


@functools.lru_cache(maxsize=1)
def _schemas() -> tuple[Schema, Schema]:
    package = package_folder()
    program = package / PROGRAM_SCHEMA
    return parse_schema(program.with_name("scalar_type.fbs"), program), parse_schema(package / XNNPACK_SCHEMA)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file can cause, where its parts contradict each other, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except _CONTRADICTIONS as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: the file is damaged, export the model again ({reason})") from error


@dataclass(frozen=True)
class Graph:
    """One XNNPACK delegate: its operations, its values by number, and the bytes behind its constants."""

    nodes: list[dict[str, Any]]
    values: Mapping[int, dict[str, Any]]
    data: list[NDArray[np.uint8]]


class Pte:
    """An opened file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Parse the program; raises InputError for a file that is damaged or of another version of the format."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable .pte ({error})") from error
        self._bytes = np.frombuffer(self._mapping, np.uint8)
        self._start, self.program = self._parse()
        self.plan = self._method("forward")

    def _parse(self) -> tuple[int, dict[str, Any]]:
        head = self._bytes[:40].tobytes()
        schema = _schemas()[0]
        if head[4:6] == b"ET" and head[4:8] != schema.identifier:
            raise InputError(
                f"{self.path}: written in format {head[4:8].decode('latin-1')} of another ExecuTorch version, this one "
                f"reads {schema.identifier.decode()}; export the model again"
            )
        if head[4:8] != schema.identifier:
            raise InputError(f"{self.path}: not a .pte file")
        if len(head) < 40:
            raise self._damaged(f"it ends after {len(head)} bytes")
        magic, length, size, start, segments_size = _HEADER.unpack_from(head, 8)
        if magic != b"eh00" or length < _HEADER.size:
            raise InputError(f"{self.path}: it has no extended header; export the model again")
        if max(size, start + segments_size) > len(self._bytes):
            raise self._damaged(f"it ends after {len(self._bytes)} of {start + segments_size} bytes")
        try:
            program = Decoder(schema, self._bytes[:size].tobytes()).root()
        except FlatbufferError as error:
            raise self._damaged(str(error)) from error
        if program["version"]:
            raise InputError(f"{self.path}: a program of version {program['version']}, only 0 is known here")
        return start, program

    def _damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path}: the file is damaged, export the model again ({reason})")

    def _method(self, name: str) -> dict[str, Any]:
        for plan in self.program["execution_plan"]:
            if plan["name"] == name:
                return dict(plan)
        raise InputError(f"{self.path}: it has no method {name}; it is not a language model")

    def release(self) -> None:
        """Give back the memory of what was read so far; it is read again if it is used again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def segment(self, index: int) -> NDArray[np.uint8]:
        """The bytes of a segment."""
        segments = self.program["segments"]
        if not 0 <= index < len(segments):
            raise self._damaged(f"there is no segment {index}")
        start, size = self._start + segments[index]["offset"], segments[index]["size"]
        if start + size > len(self._bytes):
            raise self._damaged(f"segment {index} ends behind the file")
        return self._bytes[start : start + size]

    def value(self, index: int) -> dict[str, Any]:
        """One of forward's values; its "type" says what it is."""
        values = self.plan["values"]
        if not 0 <= index < len(values) or values[index]["val"] is None:
            raise self._damaged(f"there is no value {index}")
        return dict(values[index]["val"])

    def constant(self, index: int) -> NDArray[Any]:
        """The constant tensor that is one of forward's values."""
        tensor = self.value(index)
        place = tensor.get("data_buffer_idx", 0)
        offsets = (self.program["constant_segment"] or {}).get("offsets", [])
        if tensor["type"] != "Tensor" or not 0 < place < len(offsets):
            raise self._damaged(f"value {index} is not a constant tensor")
        data = self.segment(self.program["constant_segment"]["segment_index"])[offsets[place] :]
        return self.as_array(data, DTYPES.get(tensor["scalar_type"], np.uint8), tensor["sizes"])

    def as_array(self, data: NDArray[np.uint8], dtype: Any, dims: list[int]) -> NDArray[Any]:
        """The beginning of these bytes as a tensor."""
        size = int(np.prod(dims, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size < 0 or size > len(data):
            raise self._damaged(f"a tensor of shape {dims} does not fit into its {len(data)} bytes")
        return np.frombuffer(data[:size].data, dtype).reshape(dims)

    def graph(self, delegate: int) -> Graph:
        """The graph of one of forward's delegates, which must be XNNPACK's."""
        delegates = self.plan["delegates"]
        if not 0 <= delegate < len(delegates) or delegates[delegate]["id"] != XNNPACK:
            raise self._damaged(f"there is no XNNPACK delegate {delegate}")
        processed = delegates[delegate]["processed"]
        if processed["location"] != "SEGMENT":
            raise InputError(f"{self.path}: its delegates lie inside of the program; export the model again")
        payload = self.segment(processed["index"])
        if len(payload) < _XNN_HEADER.size:
            raise self._damaged(f"delegate {delegate} ends early")
        _, magic, _, start, size, data_start, data_size = _XNN_HEADER.unpack_from(payload[: _XNN_HEADER.size].tobytes())
        if magic != b"XH00" or max(start + size, data_start + data_size) > len(payload):
            raise self._damaged(f"delegate {delegate} has no valid header")
        try:
            content = Decoder(_schemas()[1], payload[start : start + size].tobytes()).root()
        except FlatbufferError as error:
            raise self._damaged(f"delegate {delegate}: {error}") from error
        return Graph(
            [self._required(node["xnode_union"]) for node in content["xnodes"]],
            {value["id_out"]: value for value in map(self._tensor_value, content["xvalues"])},
            [self._data(entry, payload[data_start : data_start + data_size]) for entry in content["constant_data"]],
        )

    def _required(self, part: dict[str, Any] | None) -> dict[str, Any]:
        if part is None:
            raise self._damaged("a part of an XNNPACK graph is missing")
        return part

    def _tensor_value(self, value: dict[str, Any]) -> dict[str, Any]:
        """A value's tensor, with "quant_params" if it is quantised."""
        content = self._required(value["xvalue_union"])
        if "tensor_value" not in content:
            return content | {"quant_params": None}
        return self._required(content["tensor_value"]) | {"quant_params": content["quant_params"]}

    def _data(self, entry: dict[str, Any], inline: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not entry["named_key"]:
            return inline[entry["offset"] : entry["offset"] + entry["size"]]
        for named in self.program["named_data"]:
            if named["key"] == entry["named_key"]:
                return self.segment(named["segment_index"])
        raise self._damaged(f"it has no data named {entry['named_key']}")

    def instructions(self) -> Iterator[dict[str, Any]]:
        """What forward does, in order."""
        if len(self.plan["chains"]) != 1:
            raise InputError(f"{self.path}: it has {len(self.plan['chains'])} chains of instructions, one was expected")
        for instruction in self.plan["chains"][0]["instructions"]:
            yield self._required(instruction["instr_args"])

    def kernel_name(self, index: int) -> str:
        """Name of one of forward's kernels, without its overload."""
        operators = self.plan["operators"]
        if not 0 <= index < len(operators):
            raise self._damaged(f"there is no kernel {index}")
        return str(operators[index]["name"])
