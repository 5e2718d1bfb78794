"""From an opened model to its canonical weights on disk: what `export` and `eval` share."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..export.bundle import sample_file
from ..export.calibration_store import CalibrationStore, calibration_key, forget_unused
from ..export.canonical import TensorError, check_formats, quantize_checkpoint
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig
from ..export.fetch import cache_folder
from ..export.folded import Overlay
from ..export.inventory import take_inventory
from ..quantize.recipe import Recipe
from ..quantize.store import CanonicalFile, CanonicalWriter, save_canonical
from .calibration import (
    CACHE_LENGTH,
    CACHE_SEQUENCES,
    TRAINED_WEIGHTS,
    TUNING_LENGTH,
    TUNING_SEQUENCES,
    calibration_sequences,
    cut_sequences,
    read_calibration_text,
)
from .heap import release_freed_memory, releasing
from .judge import CheckpointWeights
from .progress import Progress
from .tokenizer import Tokenizer

_SHORT = 4  # recipes that are not "tuned" learn from every so many of the tuning sequences
_TUNING_THREADS = 1  # each holds a sequence's activations, for the backward pass: SmolLM2's take most of a gigabyte


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
        calibration=cut_sequences(text, tokenizer, longest, calibration_sequences(checkpoint, config)),
        tuning=cut_sequences(text, tokenizer, longest, TUNING_SEQUENCES, TUNING_LENGTH),
    )


def cache_tokens(source: Source) -> NDArray[np.int64]:
    """What keys and values are measured on, int64 (sequences, tokens): short pieces from all over the text."""
    every = max(1, len(source.tuning) // CACHE_SEQUENCES)
    return source.tuning[::every, :CACHE_LENGTH]


def write_canonical(
    source: Source, recipe: Recipe, path: Path, progress: Progress
) -> tuple[CanonicalFile, list[TensorError], int]:
    """Quantise a model into a file of canonical weights; the file opened, what each tensor lost, and how many tensors
    were taken over from a process that was killed.

    Raises InputError naming the tensor if its format does not fit.
    """
    names = list(source.checkpoint.names())
    check_formats(source.checkpoint, names, recipe)
    calibrated = None if recipe.method == "rtn" else _calibrate(source, recipe, progress)
    with CanonicalWriter(path, names, key=_key(source, recipe)) as writer:
        lost = dict(writer.finished)
        left = [name for name in names if name not in lost]
        behind = f", going on behind {len(lost)} finished tensors" if lost else ""
        with progress(f"Quantising to {recipe.name}{behind}", len(left)) as step:

            def report(error: TensorError) -> None:
                lost[error.name] = error.relative_error
                step()

            for name, piece in quantize_checkpoint(source.checkpoint, left, recipe, report, calibrated):
                writer.add(name, piece, remark=lost.get(name))
    errors = [TensorError(name, recipe.format_of(name), lost[name]) for name in names]
    tokens = _tuning_tokens(source, recipe)
    if len(tokens):
        before = CanonicalFile(path)
        tuned = _tune(source, recipe, tokens, before, progress)
        beside = path.with_name(path.name + ".tuned")
        save_canonical(beside, Overlay(tuned, before))
        beside.replace(path)
    return CanonicalFile(path), errors, len(names) - len(left)


def _key(source: Source, recipe: Recipe) -> str:
    """Names what quantised weights are made of. Large files count by name, time of change, size and a sample of their
    content: reading them would take as long as quantising them.
    """
    found = [(str(path.resolve()), path.stat().st_mtime_ns, sample_file(path)) for path in source.checkpoint.files]
    content = {
        "pocketlm": __version__,
        "files": found,
        "changes": list(source.checkpoint.changes),
        "config": dict(source.checkpoint.config),
        "recipe": recipe.to_json(),
        "tokens": hashlib.sha256(source.calibration.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    return source.tuning[::_SHORT] if recipe.method == "calibrated" and size <= TRAINED_WEIGHTS else source.tuning[:0]


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
