"""From an opened model to its canonical weights on disk: what `export` and `eval` share."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..export.calibration_store import CalibrationStore, calibration_key, forget_unused
from ..export.canonical import TensorError, check_formats, quantize_checkpoint
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig
from ..export.fetch import cache_folder
from ..export.inventory import take_inventory
from ..quantize.recipe import Recipe
from ..quantize.store import CanonicalFile, save_canonical
from .calibration import LENGTH, SEQUENCES, TUNING_LENGTH, TUNING_SEQUENCES, cut_sequences, read_calibration_text
from .heap import release_freed_memory, releasing
from .judge import CheckpointWeights
from .progress import Progress
from .tokenizer import Tokenizer

_ACTIVATION_BYTES = 1 << 30  # of one linear's output in float32, the source's and the quantised model's
_FEWEST = 8
_SHORT = 4  # recipes that are not "tuned" learn from every so many of the tuning sequences
_TUNING_THREADS = 1  # each holds a sequence's activations, for the backward pass: SmolLM2's take most of a gigabyte
_SMALL = 500_000_000  # and not at all for models with more weights in linears: tuning holds the whole model in memory


@dataclass(frozen=True)
class Source:
    """A checkpoint with its configuration, and the tokens to calibrate on and to tune on, int64 (sequences, tokens)."""

    checkpoint: Checkpoint
    config: ModelConfig
    calibration: NDArray[np.int64]
    tuning: NDArray[np.int64]


def open_source(checkpoint: Checkpoint, config: ModelConfig, calibration: Path | None) -> Source:
    """Read the calibration text (None: the one that ships) as the model's tokens; raises InputError if it cannot be."""
    tokenizer = Tokenizer(checkpoint.tokenizer_files()["tokenizer.json"].decode("utf-8"))
    text, longest = read_calibration_text(calibration), config.max_position_embeddings
    return Source(
        checkpoint,
        config,
        calibration=cut_sequences(text, tokenizer, longest, _sequences(checkpoint, config)),
        tuning=cut_sequences(text, tokenizer, longest, TUNING_SEQUENCES, TUNING_LENGTH),
    )


def _sequences(checkpoint: Checkpoint, config: ModelConfig) -> int:
    """How many calibration sequences may be in memory at once; the widest output of a linear decides."""
    groups = [names for names in take_inventory(config).linears if names[0] != config.head_name]
    widest = max(sum(checkpoint.shape(name)[0] for name in names) for names in groups)
    return max(_FEWEST, min(SEQUENCES, _ACTIVATION_BYTES // (2 * 4 * LENGTH * widest)))


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
    tokens = _tuning_tokens(source, recipe)
    if len(tokens):
        tuned, before = _tune(source, recipe, tokens, CanonicalFile(path), progress), CanonicalFile(path)
        save_canonical(path, ((name, tuned[name] if name in tuned else before[name]) for name in before))
    return CanonicalFile(path), errors


def _calibrate(source: Source, recipe: Recipe, progress: Progress) -> CalibrationStore:
    """Choose the integers of the linears for the calibration text; what was done before is taken from the cache."""
    from ..export.calibrate import calibrate, calibration_steps, plan_calibration

    key = calibration_key(source.checkpoint, replace(recipe, method="layerwise"), source.calibration)
    store = _open_store(key)
    steps = calibration_steps(plan_calibration(source.config, recipe))
    with progress(f"Calibrating {recipe.name} on {source.calibration.size} tokens", steps) as step:
        weights = CheckpointWeights(source.checkpoint)
        calibrate(weights, source.config, recipe, source.calibration, store, releasing(step), os.cpu_count() or 1)
    release_freed_memory()
    return store


def _open_store(key: str) -> CalibrationStore:
    """What was done before under this key; what nobody has used for long goes."""
    root = cache_folder() / "calibration"
    forget_unused(root, time.time())
    return CalibrationStore(root / key)


def _tuning_tokens(source: Source, recipe: Recipe) -> NDArray[np.int64]:
    """What scales and norms are to be trained on, perhaps nothing."""
    linears = {name for names in take_inventory(source.config).linears for name in names}
    size = sum(math.prod(source.checkpoint.shape(name)) for name in linears - {source.config.head_name})
    if recipe.method == "tuned":
        return source.tuning
    return source.tuning[::_SHORT] if recipe.method == "calibrated" and size <= _SMALL else source.tuning[:0]


def _tune(
    source: Source, recipe: Recipe, tokens: NDArray[np.int64], weights: CanonicalFile, progress: Progress
) -> CalibrationStore:
    """Train scales and norms of calibrated weights; what was done before is taken from the cache."""
    from ..export.tune import tune, tuning_steps

    key = calibration_key(source.checkpoint, recipe, source.calibration, tokens)
    store = _open_store(key)
    if not any(True for _ in store):
        with progress(f"Tuning {recipe.name} on {tokens.size} tokens", tuning_steps(len(tokens))) as step:
            teacher = CheckpointWeights(source.checkpoint)
            tuned = tune(teacher, weights, source.config, tokens, releasing(step), _TUNING_THREADS)
            store.save(("tuned",), tuned, {})
            release_freed_memory()
    return store
