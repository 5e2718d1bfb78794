"""Whether a finished file holds the canonical weights: the same integers, the same scales, the same constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..export.bundle import fingerprint
from ..export.config import ModelConfig
from ..export.inventory import take_inventory
from ..quantize.cache import CACHE_FORMATS, CacheFormat, is_cache_scale
from ..quantize.tensor import QuantizedTensor
from .target import ReadBack


@dataclass(frozen=True)
class Identity:
    """The outcome of reading a file back.

    tensors_checked    matrices (linears, embedding, head) that were compared
    constants_checked  norms, biases, epsilons and attention parameters that were compared
    differences        one line each, naming the tensor or constant; empty if identical
    """

    tensors_checked: int
    constants_checked: int
    differences: tuple[str, ...]


def check_identity(
    found: ReadBack, expected: Mapping[str, Mapping[str, str]], config: ModelConfig, cache: CacheFormat | None = None
) -> Identity:
    """Compare what was read back with the canonical fingerprints and with the model's own configuration.

    cache  the artifact's, as the manifest has it; None is the target's floating point
    """
    if cache is None or not cache.static_scales:  # another artifact of the bundle may have some
        expected = {name: prints for name, prints in expected.items() if not is_cache_scale(name)}
    differences = []
    matrices = 0
    for name, prints in expected.items():
        matrices += len(prints["format"].split()[-1].split("x")) == 2
        difference = _weight_difference(found, name, prints)
        if difference:
            differences.append(f"{name}: {difference}")
    differences += [
        f"{name}: in the file, but not in the model"
        for name in found.weights
        if name not in expected and not (name == "lm_head.weight" and config.tie_word_embeddings)
    ]
    if config.tie_word_embeddings and "lm_head.weight" in found.weights:
        difference = _weight_difference(found, "lm_head.weight", expected[config.head_name])
        if difference:
            differences.append(f"lm_head.weight (tied): {difference}")
    differences += _cache_differences(found.caches, cache)
    constants = take_inventory(config).constants
    differences += _constant_differences(found.constants, constants)
    return Identity(matrices, len(expected) - matrices + len(constants), tuple(differences))


def _weight_difference(found: ReadBack, name: str, expected: Mapping[str, str]) -> str | None:
    if name not in found.weights:
        return "not in the file"
    tensor = found.weights[name]
    actual = fingerprint(_as_stored(tensor, expected["format"]) if not isinstance(tensor, QuantizedTensor) else tensor)
    if actual["format"] != expected["format"]:
        return f"stored as {actual['format']}, canonical is {expected['format']}"
    changed = [part for part in expected if actual[part] != expected[part]]
    return f"{' and '.join(changed)} differ from the canonical ones" if changed else None


def _as_stored(tensor: np.ndarray, form: str) -> np.ndarray:
    """A dense tensor in the canonical type, if nothing is lost: a file may hold fp16 values as fp32 or the reverse."""
    canonical = tensor.astype(np.dtype(form.split()[0])) if form.startswith("float") else tensor
    return canonical if np.array_equal(canonical.astype(tensor.dtype), tensor) else tensor


def _cache_differences(found: tuple[str, ...], expected: CacheFormat | None) -> list[str]:
    """A line for each layer whose cache has another format; of floating point any will do where none is named."""
    if expected is not None and not expected.is_float and not found:
        return [f"its cache is not {expected.name}, as the manifest has it"]

    def agrees(name: str) -> bool:
        if expected is None:
            return name in CACHE_FORMATS and CACHE_FORMATS[name].is_float
        return name == expected.name

    wanted = "floating point" if expected is None else expected.name
    return [
        f"model.layers.{layer}.self_attn: its cache is {name} in the file, {wanted} in the manifest"
        for layer, name in enumerate(found)
        if not agrees(name)
    ]


def _constant_differences(found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    """Constants are compared as float32, which is what every target computes with."""
    lines = []
    for name, value in expected.items():
        if name not in found:
            lines.append(f"{name}: not found in the file")
        elif np.float32(found[name]) != np.float32(value):
            lines.append(f"{name} is {found[name]:.9g} in the file, {value:.9g} in the model")
    return lines
