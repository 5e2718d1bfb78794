"""Which KV cache each target's artifact can have, and why not another."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InputError
from ..quantize.cache import CACHES, FP16, FP32, INT8_CHANNEL, INT8_HEAD, CacheFormat
from .config import ModelConfig

TARGET_CACHES: Mapping[str, Mapping[str, CacheFormat]] = {
    "onnx": {"float": FP32, "int8": INT8_CHANNEL},
    "executorch": {"float": FP32, "int8": INT8_HEAD},
    "coreml": {"float": FP16},
}
_REASONS: Mapping[tuple[str, str], str] = {
    ("coreml", "int8"): "a state of Core ML can only be fp16 (coremltools 9.0 refuses any other type)",
}


def target_cache(target: str, cache: str) -> CacheFormat:
    """What ``--cache`` means for a target; raises InputError for a cache that it cannot have."""
    if cache not in CACHES:
        raise InputError(f"cache must be one of {', '.join(CACHES)}, it is {cache!r}")
    found = TARGET_CACHES[target].get(cache)
    if found is None:
        able = ", ".join(name for name, caches in TARGET_CACHES.items() if cache in caches)
        raise InputError(
            f"--cache {cache} cannot be had with --to {target}: {_REASONS[target, cache]}; "
            f"it can with {able}, which may have a bundle of its own"
        )
    return found


def asked_for(form: CacheFormat | None) -> str:
    """The ``--cache`` that gives such a cache; None is a target's floating point."""
    return "float" if form is None or form.is_float else "int8"


def check_cache(target: str, cache: str, config: ModelConfig) -> None:
    """Raises InputError for a model whose attention a target cannot do over such a cache."""
    capped = any(layer.attention.softcap is not None for layer in config.layers)
    if target == "executorch" and cache == "int8" and capped:
        raise InputError(
            "ExecuTorch has no int8 cache for attention with soft-capped scores, which its kernel cannot bend; "
            "export without --cache int8, or without executorch"
        )


def has_cache(target: str, cache: str) -> bool:
    """Whether a target can have such a cache."""
    return cache in TARGET_CACHES[target]
