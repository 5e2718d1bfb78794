"""Reads a Hugging Face model folder: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.tensor import QuantizedTensor
from .families import FAMILIES, Layout
from .folder_tokenizer import read_tokenizer_files
from .layouts import rename
from .reading import read_json_object, release, require_finite

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_VALUES_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in its file; ``start`` counts bytes from the beginning of the file."""

    shard: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def rows(self, start: int, stop: int | None) -> _Stored:
        """Where rows [start, stop) lie; those behind the last one are left out."""
        if start == 0 and (stop is None or stop >= self.shape[0]):
            return self
        rows = range(self.shape[0])[start:stop]
        row_bytes = math.prod(self.shape[1:]) * np.dtype(_DTYPES[self.dtype]).itemsize
        return replace(self, shape=(len(rows), *self.shape[1:]), start=self.start + rows.start * row_bytes)


class SafetensorsReader:
    """A Checkpoint over a model folder. Files are mapped into memory, tensors read one by one."""

    def __init__(self, folder: Path) -> None:
        """Open the folder and check the headers of all its weight files.

        Raises InputError if something is missing, damaged, or would need foreign code.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of a model with its config.json")
        self._folder = folder
        self._config = _read_config(folder)
        family = FAMILIES.get(str(self._config.get("model_type")))
        self._layout = Layout() if family is None else family.layout
        self._files = _weight_files(folder)
        self._maps = {}
        self._tensors: dict[str, _Stored] = {}
        for path in self._files:
            self._maps[path], stored = _open_shard(path)
            for name, tensor in stored.items():
                self._add(path, name, tensor)
        self._untie_or_drop_head()

    @property
    def config(self) -> Mapping[str, Any]:
        """See Checkpoint."""
        return self._config

    @property
    def files(self) -> Sequence[Path]:
        """See Checkpoint."""
        return self._files

    @property
    def changes(self) -> Sequence[str]:
        """See Checkpoint."""
        return ()

    @property
    def licence(self) -> str | None:
        """See Checkpoint. Model cards state it between the first two lines of dashes in README.md."""
        card = self._folder / "README.md"
        if not card.is_file():
            return None
        parts = re.split(r"^---\s*$", card.read_text(errors="replace"), maxsplit=2, flags=re.MULTILINE)
        found = re.search(r"^license:[ \t]*([\w.-]+)", parts[1], re.MULTILINE) if len(parts) == 3 else None
        return found[1] if found else None

    def names(self) -> Sequence[str]:
        """See Checkpoint."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._tensors[name].shape

    def kind(self, name: str) -> str:
        """How the file stores a tensor: F32, F16 or BF16."""
        return self._tensors[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See Checkpoint."""
        stored = self._tensors[name].rows(start, stop)
        raw = self._raw(stored)
        values = _to_float32(raw, stored.dtype).reshape(stored.shape)
        release(self._maps[stored.shard], stored.start, raw.nbytes)
        return require_finite(values, stored.shard, name)

    def stored_codes(self, name: str) -> QuantizedTensor | None:
        """See Checkpoint. Files of quantised weights are refused."""
        return None

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """See Checkpoint."""
        return self._tokenizer_files

    @cached_property
    def _tokenizer_files(self) -> Mapping[str, bytes]:
        return read_tokenizer_files(self._folder, self._config)

    def _raw(self, stored: _Stored) -> NDArray[Any]:
        count = int(np.prod(stored.shape, dtype=np.int64))
        return np.frombuffer(self._maps[stored.shard], _DTYPES[stored.dtype], count, stored.start)

    def _add(self, path: Path, stored_name: str, stored: _Stored) -> None:
        name = rename(stored_name, self._layout)
        if name is None:
            return
        if not name.isprintable():
            raise InputError(f"{path}: has a tensor with the name {name[:40]!r}; it is damaged, download it again")
        if name in self._tensors:
            raise InputError(f"{path}: tensor {name} is also in {self._tensors[name].shard.name}; remove one of them")
        if stored.dtype not in _DTYPES:
            raise InputError(
                f"{path}: tensor {name} has the type {stored.dtype}, which is not supported; "
                f"supported are: {', '.join(_DTYPES)} (give the model before it was quantised)"
            )
        self._tensors[name] = stored

    def _untie_or_drop_head(self) -> None:
        """A head beside a configuration that ties it: as in transformers 5, it counts only if it differs."""
        family = FAMILIES.get(str(self._config.get("model_type")))
        default = family is not None and family.tied_by_default
        if not self._config.get("tie_word_embeddings", default) or not {_EMBEDDING, _HEAD} <= set(self._tensors):
            return
        if self._same_values(self._tensors[_EMBEDDING], self._tensors[_HEAD]):
            del self._tensors[_HEAD]
        else:
            self._config["tie_word_embeddings"] = False

    def _same_values(self, left: _Stored, right: _Stored) -> bool:
        if left.shape != right.shape:
            return False
        parts = zip(_parts(self._raw(left)), _parts(self._raw(right)), strict=True)
        return all(np.array_equal(_to_float32(a, left.dtype), _to_float32(b, right.dtype)) for a, b in parts)


def open_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of one small file, float32; raises InputError if it is not sound."""
    mapped, stored = _open_shard(path)
    tensors = {}
    for name, tensor in stored.items():
        if tensor.dtype not in _DTYPES:
            raise InputError(f"{path}: tensor {name} has the type {tensor.dtype}; supported are: {', '.join(_DTYPES)}")
        count = int(np.prod(tensor.shape, dtype=np.int64))
        raw = np.frombuffer(mapped, _DTYPES[tensor.dtype], count, tensor.start)
        tensors[name] = require_finite(_to_float32(raw, tensor.dtype).reshape(tensor.shape), path, name)
    return tensors


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[start : start + _VALUES_AT_A_TIME] for start in range(0, flat.size, _VALUES_AT_A_TIME))


def _to_float32(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A new array; bfloat16 is the upper half of a float32."""
    if dtype != "BF16":
        return raw.astype(np.float32)
    bits = raw.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        advice = f"give the file {ggufs[0]} instead" if ggufs else "give the folder of a Hugging Face model"
        raise InputError(f"{folder}: has no config.json; {advice}")
    config = read_json_object(path)
    family = FAMILIES.get(str(config.get("model_type")))
    for key in ("auto_map", "custom_pipelines"):
        if key in config and not (key == "auto_map" and family is not None and family.own_code):
            raise InputError(
                f"{path}: {key} asks for code that comes with the model, which pocketlm never runs; "
                "use a model whose architecture transformers knows"
            )
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The one file, or the shards that the index lists. A single file goes first, as in transformers."""
    if (folder / _ONE_FILE).is_file():
        return (folder / _ONE_FILE,)
    if (folder / _INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
    if pickles:
        raise InputError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which can run code when it is loaded; "
            "convert the model to safetensors first"
        )
    raise InputError(f"{folder}: has no weights; it needs {_ONE_FILE}, or {_INDEX} and its shards")


def _shards(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise InputError(f"{index}: weight_map must say for each tensor which file holds it; download it again")
    paths = []
    for place in sorted(set(places.values())):
        # a link may lead out of the folder, as those of Hugging Face's cache do; a name may not
        if _escapes(place):
            raise InputError(f"{index}: names the shard {place!r} outside of the folder; do not trust this model")
        path = folder / place
        if not os.path.isfile(path):  # unlike Path's, False for a name that no file can have
            raise InputError(f"{folder}: the shard {place} is missing; download the model again")
        paths.append(path)
    return tuple(paths)


def _escapes(place: str) -> bool:
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    return bool(
        not place.strip(". ")
        or "\0" in place
        or posix.is_absolute()
        or windows.root
        or windows.drive
        or ".." in posix.parts + windows.parts
    )


def _open_shard(path: Path) -> tuple[mmap.mmap, dict[str, _Stored]]:
    """Map a file and take its table of tensors, which the safetensors library has checked against its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: is not a sound safetensors file ({reason}); it is damaged or incomplete, download it again"
        ) from error
    header_size = int.from_bytes(mapped[:8], "little")
    header: dict[str, Any] = json.loads(mapped[8 : 8 + header_size])
    header.pop("__metadata__", None)
    return mapped, {
        name: _Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + header_size + entry["data_offsets"][0])
        for name, entry in header.items()
    }
