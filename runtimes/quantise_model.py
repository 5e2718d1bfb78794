"""From an opened model to its canonical weights on disk: what `export` and `eval` share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..export.calibration_store import CalibrationStore, calibration_key
from ..export.canonical import TensorError, check_formats, quantize_checkpoint
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig
from ..export.fetch import cache_folder
from ..quantize.recipe import Recipe
from ..quantize.store import CanonicalFile, save_canonical
from .calibration import cut_sequences, read_calibration_text
from .judge import CheckpointWeights
from .progress import Progress
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A checkpoint with its configuration, and the tokens to calibrate on."""

    checkpoint: Checkpoint
    config: ModelConfig
    calibration: NDArray[np.int64]


def open_source(checkpoint: Checkpoint, config: ModelConfig, calibration: Path | None) -> Source:
    """Read the calibration text (None: the one that ships) as the model's tokens; raises InputError if it cannot be."""
    tokenizer = Tokenizer(checkpoint.tokenizer_files()["tokenizer.json"].decode("utf-8"))
    text = read_calibration_text(calibration)
    return Source(checkpoint, config, cut_sequences(text, tokenizer, config.max_position_embeddings))


def write_canonical(
    source: Source, recipe: Recipe, path: Path, progress: Progress
) -> tuple[CanonicalFile, list[TensorError]]:
    """Quantise a model into a file of canonical weights; the file opened, and what each tensor lost.

    Raises InputError naming the tensor if its format does not fit.
    """
    names = list(source.checkpoint.names())
    errors: list[TensorError] = []
    check_formats(source.checkpoint, names, recipe)
    calibrated = None if recipe.method == "rtn" else _calibrate(source, recipe, progress)
    with progress(f"Quantising to {recipe.name}", len(names)) as step:

        def report(error: TensorError) -> None:
            errors.append(error)
            step()

        save_canonical(path, quantize_checkpoint(source.checkpoint, names, recipe, report, calibrated))
    return CanonicalFile(path), errors


def _calibrate(source: Source, recipe: Recipe, progress: Progress) -> CalibrationStore:
    """Choose the integers of the linears for the calibration text; what was done before is taken from the cache."""
    from ..export.calibrate import calibrate, calibration_steps, plan_calibration

    key = calibration_key(source.checkpoint, recipe, source.calibration)
    store = CalibrationStore(cache_folder() / "calibration" / key)
    steps = calibration_steps(plan_calibration(source.config, recipe))
    with progress(f"Calibrating {recipe.name} on {source.calibration.size} tokens", steps) as step:
        weights = CheckpointWeights(source.checkpoint)
        calibrate(weights, source.config, recipe, source.calibration, store, step, os.cpu_count() or 1)
    return store
