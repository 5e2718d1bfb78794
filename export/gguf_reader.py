"""Reads a GGUF file as if it were the Hugging Face folder that it was made from."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.tensor import QuantizedTensor
from .gguf_codes import stored_codes
from .gguf_config import rebuild_config
from .gguf_header import GgufHeader, TensorInfo, read_header
from .reading import release, require_finite

_OUTSIDE_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Kind = TypeVar("Kind", np.float32, np.int8)
_ROPE_FACTORS = "rope_freqs.weight"
_VALUES_AT_A_TIME = 1 << 20  # as many are dequantised in one go, so that temporaries stay small


class GgufReader:
    """A Checkpoint over one GGUF file of a known architecture: mapped into memory, read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        """Open the file and check all of its header.

        Raises InputError if it is no sound GGUF file or holds something that is not supported.
        """
        self._path = path
        self._data = _map(path)
        header = read_header(self._data, path)
        self._fields = header.fields
        self._tensors = _renamed(header)
        shapes = {name: info.shape for name, info in self._tensors.items()}
        stored = header.tensors.get(_ROPE_FACTORS)
        factors = None if stored is None else self._dequantize(_ROPE_FACTORS, stored, range(stored.shape[0]))
        try:
            self._config = rebuild_config(header.fields, shapes, factors)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @property
    def config(self) -> Mapping[str, Any]:
        """See Checkpoint."""
        return self._config

    @property
    def files(self) -> Sequence[Path]:
        """See Checkpoint."""
        return (self._path,)

    @property
    def changes(self) -> Sequence[str]:
        """See Checkpoint."""
        return ()

    @property
    def licence(self) -> str | None:
        """See Checkpoint."""
        licence = self._fields.get("general.license")
        return licence if isinstance(licence, str) and licence.isprintable() else None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's own metadata, as it has them (``general.license`` and the like)."""
        return self._fields

    def names(self) -> Sequence[str]:
        """See Checkpoint."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._tensors[name].shape

    def kind(self, name: str) -> str:
        """How the file stores a tensor: F32, F16, BF16, Q4_0, ..."""
        return self._tensors[name].kind

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See Checkpoint."""
        info, heads = self._tensors[name], self._heads_of(name)
        rows = range(info.shape[0])[start:stop]
        if heads is None:
            return self._dequantize(name, info, rows)
        if info.shape[0] % (2 * heads):
            raise InputError(f"{self._path}: {name} has {info.shape[0]} rows, which {heads} heads cannot share")
        width = info.shape[0] // heads  # rows change places within a head: read whole heads
        first, behind = rows.start // width, -(-rows.stop // width)
        values = self._dequantize(name, info, range(first * width, behind * width))
        return _unpermute(values, behind - first)[rows.start - first * width : rows.stop - first * width]

    def stored_codes(self, name: str) -> QuantizedTensor | None:
        """See Checkpoint."""
        info = self._tensors[name]
        found = stored_codes(self._raw(info), info.kind, info.shape)
        heads = self._heads_of(name)
        if found is None or heads is None:
            return found
        return QuantizedTensor(_unpermute(found.codes, heads), _unpermute(found.scales, heads), found.bits)

    def _raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        return np.frombuffer(self._data, np.uint8, info.size_bytes, info.offset)

    def _heads_of(self, name: str) -> int | None:
        """Over how many heads llama.cpp has changed the order of a tensor's rows, if it has: only Llama's."""
        if self._config["model_type"] != "llama":
            return None
        for part, key in (".q_proj.", "num_attention_heads"), (".k_proj.", "num_key_value_heads"):
            if part in name:
                return int(self._config[key])
        return None

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """See Checkpoint."""
        return self._tokenizer_files

    @cached_property
    def _tokenizer_files(self) -> Mapping[str, bytes]:
        from .gguf_tokenizer import recover_tokenizer

        try:
            return recover_tokenizer(self._fields)
        except InputError as error:
            raise InputError(f"{self._path}: {error}") from error

    def _dequantize(self, name: str, info: TensorInfo, rows: range) -> NDArray[np.float32]:
        """Rows of a matrix, or values of a vector, whose blocks reach over all of it."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        if len(info.shape) == 1:
            whole: NDArray[np.float32] = dequantize(self._raw(info), GGMLQuantizationType[info.kind])
            return require_finite(whole.astype(np.float32)[rows.start : rows.stop], self._path, name)
        columns = math.prod(info.shape[1:])
        values = np.empty((len(rows), columns), np.float32)
        raw = self._raw(info).reshape(info.shape[0], -1)[rows.start : rows.stop]
        step = max(1, _VALUES_AT_A_TIME // columns)
        with np.errstate(all="ignore"):  # what overflows here is not finite, and refused below
            for start in range(0, len(values), step):
                part = raw[start : start + step]
                values[start : start + step] = dequantize(part, GGMLQuantizationType[info.kind])
        release(self._data, info.offset + rows.start * raw.strides[0], raw.nbytes)
        return require_finite(values.reshape(len(rows), *info.shape[1:]), self._path, name)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap refuses an empty file so
        raise InputError(f"{path}: is empty; download it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); give the model's .gguf file") from error


def _renamed(header: GgufHeader) -> dict[str, TensorInfo]:
    """Tensors by their Hugging Face names. What has none keeps its own, for check_tensors to complain about."""
    return {
        hugging_face_name(name): info
        for name, info in header.tensors.items()
        # part of the configuration, and an old copy of what follows from it
        if name != _ROPE_FACTORS and not name.endswith(".attn_rot_embd.weight")
    }


def hugging_face_name(name: str) -> str:
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight; names that are not known stay as they are."""
    stem, dot, suffix = name.rpartition(".")
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{suffix}"
    return f"{_OUTSIDE_NAMES.get(stem, stem)}{dot}{suffix}"


def _unpermute(values: NDArray[Kind], heads: int) -> NDArray[Kind]:
    """Rows of a query or key projection (or its bias) from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbouring rows of a head, Hugging Face a row of the first half with one of the second half;
    its converter interleaves the halves (``permute`` in convert_hf_to_gguf.py).
    """
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])  # (heads, head_dim / 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(values.shape)
