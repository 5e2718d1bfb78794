"""Writing a .pte: segments of data first, streamed, then the program in front of them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .executorch_schema import PROGRAM_SCHEMA, compile_flatbuffers

MODEL_FILE = "model.pte"
_SEGMENT_ALIGNMENT = 128
_TENSOR_ALIGNMENT = 64
_HEADER = struct.Struct("<4sIQQQ")  # magic, length, size of program, start of segments, size of segments
_MAGIC = b"eh00"

Array = NDArray[Any]


class PteFile:
    """Streams segments to a file beside ``folder``/model.pte; ``save`` puts the program in front and joins them.

    The runtime loads constants of the program as one segment, and weights of XNNPACK each as one of its own; it does
    not mind that one segment lies within another, which is how a tied table is stored once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MODEL_FILE
        self._body_path = folder / f"{MODEL_FILE}.segments"
        self._body = self._body_path.open("wb")
        self._segments: list[dict[str, int]] = []
        self._named: dict[str, int] = {}  # key -> segment
        self._constants: list[tuple[int, Callable[[], Iterable[Array]]]] = []  # (bytes, how to get them)
        self._tied: dict[str, int] = {}  # key -> constant

    def segment(self, data: bytes | memoryview) -> int:
        """Write a segment; returns its index."""
        return self._begin_end(lambda: self._body.write(data))

    def _begin_end(self, write: Callable[[], Any]) -> int:
        self._pad(_SEGMENT_ALIGNMENT)
        start = self._body.tell()
        write()
        self._segments.append({"offset": start, "size": self._body.tell() - start})
        return len(self._segments) - 1

    def _pad(self, alignment: int) -> None:
        self._body.write(b"\0" * (-self._body.tell() % alignment))

    def named(self, key: str, parts: Iterable[Array]) -> str:
        """Write data that XNNPACK asks for by ``key``: the bytes of the parts, one after the other. Returns the key."""
        if key not in self._named:
            self._named[key] = self._begin_end(lambda: self._write_parts(parts))
        return key

    def _write_parts(self, parts: Iterable[Array]) -> None:
        for part in parts:
            self._body.write(np.ascontiguousarray(part).data)

    def constant(self, size: int, parts: Callable[[], Iterable[Array]]) -> int:
        """Announce ``size`` bytes of constants, which are asked for at the end; returns their index."""
        self._constants.append((size, parts))
        return len(self._constants)  # index 0 means: not a constant

    def named_constant(self, key: str, constant: int) -> str:
        """Let XNNPACK find the bytes of a constant by ``key``, without writing them again. Returns the key."""
        self._tied[key] = constant
        return key

    def _write_constants(self) -> dict[str, Any]:
        offsets = [0]

        def write() -> None:
            start = self._body.tell()
            for size, parts in self._constants:
                self._pad(_TENSOR_ALIGNMENT)
                offsets.append(self._body.tell() - start)
                self._write_parts(parts())
                assert self._body.tell() - start == offsets[-1] + size

        index = self._begin_end(write)
        start = self._segments[index]["offset"]
        for key, constant in self._tied.items():
            self._segments.append({"offset": start + offsets[constant], "size": self._constants[constant - 1][0]})
            self._named[key] = len(self._segments) - 1
        return {"segment_index": index, "offsets": offsets}

    def save(self, plans: list[dict[str, Any]]) -> None:
        """Write the constants and the file, whose program has these execution plans."""
        constants = self._write_constants()
        size = self._body.tell()
        self._body.close()
        program = {
            "version": 0,
            "execution_plan": plans,
            "constant_buffer": [],
            "backend_delegate_data": [],
            "segments": self._segments,
            "constant_segment": constants,
            "named_data": [{"key": key, "segment_index": index} for key, index in self._named.items()],
        }
        head = _with_header(compile_flatbuffers(PROGRAM_SCHEMA, [program])[0], size)
        with self._path.open("wb") as file, self._body_path.open("rb") as body:
            file.write(head)
            shutil.copyfileobj(body, file, 1 << 22)
        self._body_path.unlink()

    def close(self) -> None:
        """Release and remove the segments when writing was given up."""
        self._body.close()
        self._body_path.unlink(missing_ok=True)


def _with_header(flatbuffer: bytes, segments_size: int) -> bytes:
    """The program with ExecuTorch's extended header behind its identifier, padded to where segments may start.

    The header's 32 bytes keep every alignment within the flatbuffer.
    """
    size = len(flatbuffer) + _HEADER.size
    start = -(-size // _SEGMENT_ALIGNMENT) * _SEGMENT_ALIGNMENT
    header = _HEADER.pack(_MAGIC, _HEADER.size, size, start, segments_size)
    root = struct.unpack_from("<I", flatbuffer)[0] + len(header)
    program = struct.pack("<I", root) + flatbuffer[4:8] + header + flatbuffer[8:]
    return program + b"\0" * (start - size)
