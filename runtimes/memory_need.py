"""How much memory an export needs, known before any work is done: what ``--max-memory`` is held against.

Each figure is what a phase was measured to take at most, rounded up, plus what it holds of the model at once. What
libraries take was measured on x86-64 Linux; they differ by system, but not by much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from ..errors import InputError
from ..export.caches import target_cache
from ..export.canonical import PIECE_VALUES, is_linear
from ..export.config import ModelConfig
from ..export.families import FAMILIES
from ..export.gguf_codes import STORED_KINDS
from ..export.inventory import take_inventory
from ..quantize.cache import CacheFormat
from ..quantize.recipe import Recipe
from .calibration import CACHE_LENGTH, CACHE_SEQUENCES
from .calibration_need import calibration_needs
from .heap import release_freed_memory
from .peak_memory import resident_bytes

_MB = 1 << 20
PROCESS = 128 * _MB  # with the tokenizer
_PIECES = 5  # that are quantised, or wait for it or behind it
_PIECE_BYTES = 14  # for a value of a piece: as stored, float32, its error, codes
_WHOLE_BYTES = 16  # for a value of a matrix that can only be read whole
_WRITERS = {"onnx": 100 * _MB, "executorch": 160 * _MB, "coreml": 960 * _MB}  # libraries, and the graph
_TORCH = 600 * _MB  # with transformers' tokenizer; coremltools brings torch itself
_TOKENIZER = 100 * _MB  # what the tokenizer adds to a process that has torch
_ENDING = 150 * _MB  # what torch takes while the process ends
_RUNTIMES = {"onnx": 200 * _MB, "executorch": 400 * _MB, "coreml": 700 * _MB}
_LOADED = {"onnx": 2.2, "executorch": 2.2, "coreml": 3.0}  # a loaded artifact's memory over its size


class Tensors(Protocol):
    """What is asked of a checkpoint: names, shapes, and how it stores a tensor. See ``Checkpoint``."""

    def names(self) -> Sequence[str]:
        """Of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """(out, in) of a matrix."""
        ...

    def kind(self, name: str) -> str:
        """F32, BF16, Q4_0, ..."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is exported. ``calibration_tokens`` are those of the text that calibrated recipes read."""

    checkpoint: Tensors
    config: ModelConfig
    recipe: Recipe
    context: int
    calibration_tokens: int
    cache: str = "float"


def process_bytes() -> int:
    """What this process takes now, rounded up, so that it is the same next time."""
    release_freed_memory()
    return -(-resident_bytes() // PROCESS) * PROCESS


def check_memory(
    subject: Subject, targets: Sequence[str], max_memory: int, certify: str, budget: bool, base: int
) -> None:
    """Raise InputError if an export would take more than ``max_memory`` bytes, saying what would make it fit.

    budget  whether formats are chosen by measuring the model (``--bits``, ``--size``)
    base    bytes that the process has already
    """
    needs = memory_needs(subject, targets, certify, base, budget)
    phase = max(needs, key=lambda name: needs[name])
    if needs[phase] <= max_memory:
        return
    advice = [f"--max-memory {_gigabytes(needs[phase])}"]
    if certify == "full":
        less = max(memory_needs(subject, targets, "identity", base, budget).values())
        if less < needs[phase]:
            advice.append(f"--certify identity, which runs nothing and needs {_gigabytes(less)}")
    if subject.recipe.method != "rtn":
        rounded = replace(subject, recipe=replace(subject.recipe, method="rtn"))
        less = max(memory_needs(rounded, targets, certify, base, budget).values())
        if less < needs[phase]:
            advice.append(f"a recipe that is rounded to nearest, like int4-rtn, which needs {_gigabytes(less)}")
    raise InputError(
        f"to {phase} takes {_gigabytes(needs[phase])}, more than --max-memory {_gigabytes(max_memory)}; "
        f"give {' or '.join(advice)}"
    )


def memory_needs(
    subject: Subject, targets: Sequence[str], certify: str, base: int, budget: bool = False
) -> Mapping[str, int]:
    """Bytes of resident memory that phases of an export take at most; ``base`` the process has already."""
    checkpoint, config = subject.checkpoint, subject.config
    largest, widest = _largest_matrices(checkpoint, 1), _widest_linear(checkpoint, config)
    size = _artifact_bytes(checkpoint, subject.recipe)
    whole = _largest_matrices(checkpoint, _PIECES) * _WHOLE_BYTES if _reads_whole(checkpoint, config) else 0
    libraries = sum(_WRITERS[name] for name in set(targets))
    torch = 0 if "coreml" in targets else _TORCH
    # transformers' tokenizer brings it, calibration, or measuring the cache; else it comes when all is written
    measured = any(target_cache(name, subject.cache).static_scales for name in targets)
    early = _TORCH if certify == "full" or subject.recipe.method != "rtn" or budget or measured else 0
    needs = {"quantise": base + early + 64 * _MB + max(whole, PIECE_VALUES * _PIECE_BYTES * _PIECES) + 2 * largest}
    needs |= {f"{name}": base + _TORCH + more for name, more in calibration_needs(subject, budget).items()}
    needs["compare the tokenizer"] = base + libraries + (torch or _TOKENIZER)
    needs["end"] = needs["compare the tokenizer"] + _ENDING
    if measured:
        needs["measure the cache"] = base + _TORCH + 64 * _MB + _measuring_bytes(config, widest)
    for name in targets:
        held = base + libraries + (torch if early else 0)
        needs[f"write {name}"] = held + max(2 * widest, 3 * largest)
        needs[f"verify {name}"] = held + 3 * largest
        if certify == "full":
            loaded = int(_LOADED[name] * size) + _cache_bytes(
                config, subject.context, target_cache(name, subject.cache)
            )
            needs[f"verify {name}"] += _RUNTIMES[name] + loaded + 10 * largest
    return needs


def _gigabytes(size: int) -> str:
    return f"{-(-size // 10**7) / 100:.2f}GB"


def _largest_matrices(checkpoint: Tensors, count: int) -> int:
    """Values of the largest tensors together."""
    return sum(sorted((prod(checkpoint.shape(name)) for name in checkpoint.names()), reverse=True)[:count])


def _widest_linear(checkpoint: Tensors, config: ModelConfig) -> int:
    """Values of the weights that are written as one."""
    groups = [names for names in take_inventory(config).linears if names[0] != config.head_name]
    return max(sum(prod(checkpoint.shape(name)) for name in names) for names in groups)


def _reads_whole(checkpoint: Tensors, config: ModelConfig) -> bool:
    """Whether some matrices cannot be read by rows: turned ones, and integers that are kept."""
    kinds = {checkpoint.kind(name) for name in checkpoint.names()}
    return FAMILIES[config.model_type].layout.transposed or bool(kinds & set(STORED_KINDS))


def _artifact_bytes(checkpoint: Tensors, recipe: Recipe) -> int:
    total = 0
    for name in checkpoint.names():
        if not is_linear(name, checkpoint.shape(name)):
            continue
        rows, columns = checkpoint.shape(name)
        form = recipe.format_of(name)
        scales = 0 if form.bits is None else 4 * rows * columns // (form.group or columns)
        total += rows * columns * (form.bits or {"fp16": 16, "fp32": 32}[form.kind]) // 8 + scales
    return total


def _measuring_bytes(config: ModelConfig, widest: int) -> int:
    """Two weights in float32, and what is alive of a layer's values for all tokens that are measured."""
    values = max(2 * layer.attention.query_width + 4 * layer.mlp.width for layer in config.layers)
    scores = 3 * CACHE_LENGTH * max(layer.attention.heads for layer in config.layers)
    return 2 * 6 * widest + 4 * CACHE_SEQUENCES * CACHE_LENGTH * (values + 6 * config.hidden_size + scores)


def _cache_bytes(config: ModelConfig, context: int, cache: CacheFormat) -> int:
    """Of all keys and values."""
    return context * sum(
        cache.token_bytes(layer.attention.kv_heads, layer.attention.head_dim) for layer in config.layers
    )
