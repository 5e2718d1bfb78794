"""Canonical weights on disk: safetensors, so that quantising and lowering are separate steps.

Layout of one file. A quantised tensor NAME is stored as ``NAME:codes`` (int8 (out, in), or for 4 bits uint8
(out, in / 2) holding code + 8, even column in the low nibble) and ``NAME:scales`` (the upper 16 bits of each float32,
that is bf16, as uint16). A dense tensor is stored under its own name as F32 or F16. The metadata of the header
carries ``pocketlm_schema`` and ``bits`` (JSON: name -> 4 or 8).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .tensor import QuantizedTensor

SCHEMA = "1"

Dense = NDArray[np.float32] | NDArray[np.float16]
CanonicalTensor = QuantizedTensor | Dense


class Weights(Protocol):
    """The canonical weights by the checkpoint's tensor names; reading one may unpack it from disk."""

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> CanonicalTensor: ...


def bias_name(name: str) -> str:
    """The name of the bias that belongs to a weight."""
    return name.removesuffix("weight") + "bias"


def bias_of(weights: Weights, name: str) -> Dense | None:
    """The bias that belongs to a linear's weight, if the model has one."""
    bias = bias_name(name)
    if not name.endswith(".weight") or bias not in weights:
        return None
    tensor = weights[bias]
    assert not isinstance(tensor, QuantizedTensor), "biases are never quantised"
    return tensor


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes (out, in) in [-8, 7] -> bytes (out, in / 2) of code + 8, even column in the low nibble."""
    pairs = np.ascontiguousarray(codes).view("<u2") & np.uint16(0x0F0F)  # the even column in the low byte
    pairs ^= np.uint16(0x0808)  # 8 added to four bits of two's complement
    pairs |= pairs >> np.uint16(4)
    return pairs.astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The inverse of ``pack_int4``."""
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    codes[:, 0::2] = packed & np.uint8(15)
    codes[:, 1::2] = packed >> np.uint8(4)
    codes -= np.int8(8)
    return codes


def bf16_bits(scales: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Scales on the bf16 grid as raw bf16."""
    return (np.ascontiguousarray(scales).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_bf16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Raw bf16 as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def save_canonical(path: Path, tensors: Mapping[str, CanonicalTensor] | Weights, note: Mapping[str, str] = {}) -> None:
    """Write tensors one after the other; ``note`` is kept in the header's metadata."""
    save_pieces(path, list(tensors), ((name, tensors[name]) for name in tensors), note)


def save_pieces(
    path: Path, names: Sequence[str], pieces: Iterable[tuple[str, CanonicalTensor]], note: Mapping[str, str] = {}
) -> None:
    """Write the named tensors as their rows come, so that no more than a piece of one is in memory."""
    with CanonicalWriter(path, names, note) as writer:
        for name, piece in pieces:
            writer.add(name, piece)


class CanonicalWriter:
    """Writes a file of canonical weights piece by piece; it appears at ``path`` when the block ``with`` ends.

    names  of all tensors that will be added, in any order
    note   is kept in the header's metadata
    key    says what the weights are made of. A journal is kept beside the file then, and what a killed process with
           the same key finished is taken over: ``finished`` has those tensors' names and remarks.
    """

    def __init__(self, path: Path, names: Sequence[str], note: Mapping[str, str] = {}, key: str | None = None) -> None:
        self._path, self._note = path, note
        self._partial = path.with_name(path.name + ".partial")
        self._journal = None if key is None else Journal(path.with_name(path.name + ".journal"), key)
        self._header: dict[str, Any] = {}
        self._bits: dict[str, int] = {}
        self._room = _header_room(names, note)
        self._name: str | None = None  # of the tensor that is being added
        self.finished: dict[str, Any] = {}
        if self._journal is not None and path.exists():
            path.replace(self._partial)
        self._file = self._partial.open("r+b" if self._partial.exists() else "w+b", buffering=0)
        self._file.seek(self._room)
        if self._journal is not None:
            self._take_over(self._journal)
        self._file.truncate()

    def _take_over(self, journal: Journal) -> None:
        for entry in journal.sound_entries(self._file, self._room):
            self._header |= entry["header"]
            self._bits |= entry["bits"]
            self.finished[entry["name"]] = entry["remark"]

    def add(self, name: str, piece: CanonicalTensor, remark: Any = None) -> None:
        """Add a tensor, or its next rows; ``remark`` (JSON) is kept in the journal when it is complete."""
        if name != self._name:
            self._end_tensor()
            self._begin_tensor(name)
        self._remark = remark
        if not isinstance(piece, QuantizedTensor):
            self._append(name, piece)
            return
        self._bits[name] = piece.bits
        self._append(name + ":codes", pack_int4(piece.codes) if piece.bits == 4 else piece.codes)
        self._scales.append(bf16_bits(piece.scales))

    def _begin_tensor(self, name: str) -> None:
        assert not {name, name + ":codes"} & set(self._header), f"{name} was added before"
        self._name, self._digest = name, hashlib.sha256()
        self._keys: list[str] = []
        self._scales: list[NDArray[np.uint16]] = []  # follow the codes

    def _end_tensor(self) -> None:
        if self._name is None:
            return
        for scales in self._scales:
            self._append(self._name + ":scales", scales)
        if self._journal is not None:
            self._journal.add(
                name=self._name,
                header={key: self._header[key] for key in self._keys},
                bits={self._name: self._bits[self._name]} if self._name in self._bits else {},
                end=self._file.tell(),
                sha256=self._digest.hexdigest(),
                remark=self._remark,
            )
        self._name = None

    def _append(self, key: str, array: NDArray[Any]) -> None:
        """The array's bytes; if the key was met before, its rows are more of the same tensor."""
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        start, dtype = self._file.tell() - self._room, _DTYPES[array.dtype.name]
        for first in range(0, len(data), _WRITTEN_AT_ONCE):
            part = data[first : first + _WRITTEN_AT_ONCE]
            assert self._file.write(part) == len(part)
        if self._journal is not None:
            self._digest.update(data)
        if key not in self._header:
            self._keys.append(key)
            self._header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, start]}
        else:
            assert self._header[key]["dtype"] == dtype
            self._header[key]["shape"][0] += len(array)
        self._header[key]["data_offsets"][1] = start + len(data)

    def _finish(self) -> None:
        """Put the header into the room that was left for it: it ends in spaces, as the format allows."""
        self._end_tensor()
        metadata = {**self._note, "pocketlm_schema": SCHEMA, "bits": json.dumps(self._bits)}
        text = json.dumps({**self._header, "__metadata__": metadata}, separators=(",", ":")).encode()
        size = self._room - 8
        assert len(text) <= size, "more tensors were added than were announced"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", size) + text.ljust(size))

    def __enter__(self) -> CanonicalWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            if self._journal is not None:
                self._journal.close()
        if kind is None:
            self._partial.replace(self._path)
        elif self._journal is None:
            self._partial.unlink()


def _header_room(names: Sequence[str], note: Mapping[str, str]) -> int:
    """Bytes that the header takes at most, its length included; a multiple of 8, so that data are aligned."""
    quoted = sum(len(json.dumps(json.dumps(name))) for name in names)  # in "bits" they are quoted twice
    return -(-(3 * quoted + _ENTRY_BYTES * len(names) + len(json.dumps(dict(note))) + 1024) // 4096) * 4096


class Journal:
    """One line of JSON for each tensor that is complete in a file, so that the next process need not do it again."""

    def __init__(self, path: Path, key: str) -> None:
        """Keep the lines of an older journal with the same key, or begin anew."""
        self._lines = _json_lines(path)
        known = bool(self._lines) and self._lines[0] == {"key": key}
        self._lines = self._lines[1:] if known else []
        self._file = path.open("w", encoding="utf-8")
        self._write({"key": key})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def add(self, **entry: Any) -> None:
        """Note a complete tensor: its name, header, bits, the end of its bytes, their sha256, and a remark."""
        self._write(entry)

    def sound_entries(self, file: IO[bytes], start: int) -> Iterator[dict[str, Any]]:
        """The entries whose bytes in the file, from ``start`` on, are what was written; leaves the file behind them."""
        for entry in self._lines:
            digest, left = hashlib.sha256(), entry["end"] - start
            while left and (part := file.read(min(left, 1 << 22))):
                digest.update(part)
                left -= len(part)
            if left or digest.hexdigest() != entry["sha256"]:
                break
            start = entry["end"]
            self._write(entry)
            yield entry
        file.seek(start)

    def close(self) -> None:
        """Close the journal's file, which stays."""
        self._file.close()


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that is broken off; none if there is no file."""
    lines: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    return lines


_DTYPES = {"int8": "I8", "uint8": "U8", "uint16": "U16", "float16": "F16", "float32": "F32"}
_NUMPY = {theirs: np.dtype(ours) for ours, theirs in _DTYPES.items()}
_WRITTEN_AT_ONCE = 1 << 30  # Linux writes at most 2 GB at a time
_ENTRY_BYTES = 400  # of the header for one tensor, besides its name: two entries of fewer than 150, and its bits


class CanonicalFile:
    """Weights saved by ``CanonicalWriter``: a tensor is mapped into memory when it is asked for, and as long as it is
    used: a mapping of the whole file would come to look as if the process held all that it ever read.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; raises InputError if it is not one of ours."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:  # checks all of the header
                self.metadata: Mapping[str, str] = file.metadata() or {}
            with path.open("rb") as data:
                (size,) = struct.unpack("<Q", data.read(8))
                self._header: dict[str, Any] = json.loads(data.read(size))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable file of canonical weights ({error})") from error
        if self.metadata.get("pocketlm_schema") != SCHEMA:
            raise InputError(f"{path}: not canonical weights of schema {SCHEMA}; quantise the model again")
        self._path, self._start = path, 8 + size
        self._header.pop("__metadata__")
        self._bits: dict[str, int] = json.loads(self.metadata["bits"])
        stored = (key.rpartition(":")[0] or key for key in self._header if not key.endswith(":scales"))
        self._names = dict.fromkeys(stored)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> CanonicalTensor:
        bits = self._bits.get(name)
        if bits is None:
            dense: Dense = self._map(name)
            return dense
        stored = self._map(name + ":codes")
        scales = from_bf16_bits(self._map(name + ":scales"))
        return QuantizedTensor(unpack_int4(stored) if bits == 4 else stored, scales, bits)

    def _map(self, key: str) -> NDArray[Any]:
        entry = self._header[key]
        start = self._start + entry["data_offsets"][0]
        # copy on write, because torch does not take what must not be written
        return np.asarray(np.memmap(self._path, _NUMPY[entry["dtype"]], "c", start, tuple(entry["shape"])))
