"""Canonical weights on disk: safetensors, so that quantising and lowering are separate steps.

Layout of one file. A quantised tensor NAME is stored as ``NAME:codes`` (int8 (out, in), or for 4 bits uint8
(out, in / 2) holding code + 8, even column in the low nibble) and ``NAME:scales`` (the upper 16 bits of each float32,
that is bf16, as uint16). A dense tensor is stored under its own name as F32 or F16. The metadata of the header
carries ``pocketlm_schema`` and ``bits`` (JSON: name -> 4 or 8).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
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
    shifted = (codes + np.int8(8)).view(np.uint8)
    packed = shifted[:, 1::2] << np.uint8(4)
    packed |= shifted[:, 0::2]
    return packed


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


def save_canonical(path: Path, tensors: Iterable[tuple[str, CanonicalTensor]], note: Mapping[str, str] = {}) -> None:
    """Write tensors as they come; only the header waits until the end, so no more than one tensor is in memory.

    ``note`` is kept in the header's metadata. The data are streamed into a sibling file first, because a safetensors
    header stands in front of them.
    """
    header: dict[str, Any] = {}
    bits: dict[str, int] = {}
    body = path.with_name(path.name + ".body")
    try:
        with body.open("wb") as file:
            for name, tensor in tensors:
                if isinstance(tensor, QuantizedTensor):
                    bits[name] = tensor.bits
                    codes = pack_int4(tensor.codes) if tensor.bits == 4 else tensor.codes
                    _append(file, header, name + ":codes", codes)
                    _append(file, header, name + ":scales", bf16_bits(tensor.scales))
                else:
                    _append(file, header, name, tensor)
        header["__metadata__"] = {**note, "pocketlm_schema": SCHEMA, "bits": json.dumps(bits)}
        _join(path, header, body)
    finally:
        body.unlink(missing_ok=True)


_DTYPES = {"int8": "I8", "uint8": "U8", "uint16": "U16", "float16": "F16", "float32": "F32"}


def _append(file: IO[bytes], header: dict[str, Any], name: str, array: NDArray[Any]) -> None:
    start = file.tell()
    file.write(np.ascontiguousarray(array).data)
    header[name] = {
        "dtype": _DTYPES[array.dtype.name],
        "shape": list(array.shape),
        "data_offsets": [start, file.tell()],
    }


def _join(path: Path, header: dict[str, Any], body: Path) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as out, body.open("rb") as data:
        out.write(struct.pack("<Q", len(text)) + text)
        while chunk := data.read(1 << 22):
            out.write(chunk)
    partial.replace(path)


class CanonicalFile:
    """Weights saved by ``save_canonical``, memory-mapped: a tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises InputError if it is not one of ours."""
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable file of canonical weights ({error})") from error
        self.metadata: Mapping[str, str] = self._file.metadata() or {}
        if self.metadata.get("pocketlm_schema") != SCHEMA:
            raise InputError(f"{path}: not canonical weights of schema {SCHEMA}; quantise the model again")
        self._bits: dict[str, int] = json.loads(self.metadata["bits"])
        stored = (key.rpartition(":")[0] or key for key in tuple(self._file.keys()) if not key.endswith(":scales"))
        self._names = dict.fromkeys(stored)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> CanonicalTensor:
        bits = self._bits.get(name)
        if bits is None:
            dense: Dense = self._file.get_tensor(name)
            return dense
        stored = self._file.get_tensor(name + ":codes")
        scales = from_bf16_bits(self._file.get_tensor(name + ":scales"))
        return QuantizedTensor(unpack_int4(stored) if bits == 4 else stored, scales, bits)
