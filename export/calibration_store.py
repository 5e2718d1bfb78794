"""Finished parts of a calibration on disk: what was interrupted goes on, and what was done is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.recipe import Recipe
from ..quantize.store import CanonicalFile, CanonicalTensor, save_canonical
from .bundle import hash_file
from .checkpoint import Checkpoint

UNUSED_DAYS = 30
ALGORITHM = 3  # raise it when the same input gives other integers than before


def calibration_key(checkpoint: Checkpoint, recipe: Recipe, *tokens: NDArray[np.int64]) -> str:
    """Names everything that a calibration depends on: the model's files, the formats, the tokens, the algorithm."""
    content = {
        "algorithm": ALGORITHM,
        "files": [hash_file(path).sha256 for path in checkpoint.files],
        "changes": list(checkpoint.changes),
        "config": dict(checkpoint.config),
        "recipe": recipe.to_json() | {"name": "", "thresholds": {}},
        "tokens": [hashlib.sha256(np.ascontiguousarray(each).data).hexdigest() for each in tokens],
        "shapes": [list(each.shape) for each in tokens],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def forget_unused(root: Path, now: float) -> None:
    """Remove the calibrations under a folder that nobody opened for UNUSED_DAYS; ``now`` as time.time() gives it."""
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and folder.stat().st_mtime < now - UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


class CalibrationStore:
    """A folder with one file for each group of weights that is finished.

    As a mapping: canonical tensors by name, read when they are asked for. ``errors`` has each one's output error.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        self._folder = folder
        self._files: dict[str, CanonicalFile] = {}  # tensor -> the file it is in
        self.errors: dict[str, float] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self._remember(path)
            except (InputError, KeyError, ValueError):  # damaged: it is made again
                path.unlink()

    def _remember(self, path: Path) -> None:
        file = CanonicalFile(path)
        self._files.update(dict.fromkeys(file, file))
        self.errors |= json.loads(file.metadata["errors"])

    def save(self, names: Sequence[str], tensors: Mapping[str, CanonicalTensor], errors: Mapping[str, float]) -> None:
        """Keep the finished tensors of one group."""
        path = self._folder / f"{hashlib.sha256(' '.join(names).encode()).hexdigest()[:16]}.safetensors"
        save_canonical(path, tensors, {"errors": json.dumps(errors)})
        self._remember(path)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> CanonicalTensor:
        return self._files[name][name]

    def dense(self, name: str) -> NDArray[Any]:
        """A tensor that is not quantised, as float32."""
        return np.asarray(self[name], np.float32)
