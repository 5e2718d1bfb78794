"""How keys and values are kept between tokens: the formats of a KV cache, and the scales of one in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .store import Weights

Part = Literal["key", "value"]
PARTS: tuple[Part, ...] = ("key", "value")
Head = Part | Literal["query"]  # what attention takes
CACHES = ("float", "int8")  # what a user may ask for: the target's own floating point, or 8 bits
_LARGEST_CODE = 127


@dataclass(frozen=True)
class CacheFormat:
    """How a target keeps keys and values.

    name           as the manifest has it
    value_bytes    of one number
    head_bytes     beside them, for the keys (and the values) of a head and token: scales that are found at run time
    static_scales  whether the scales are constants, measured at export: canonical tensors by ``scale_name``
    """

    name: str
    value_bytes: int
    head_bytes: int = 0
    static_scales: bool = False

    def token_bytes(self, kv_heads: int, head_dim: int) -> int:
        """Of the keys and values of one token in one layer."""
        return 2 * kv_heads * (head_dim * self.value_bytes + self.head_bytes)

    @property
    def is_float(self) -> bool:
        """Whether it keeps what it is given, but for the rounding of its floating point."""
        return self.name.startswith("fp")


FP32 = CacheFormat("fp32", 4)
FP16 = CacheFormat("fp16", 2)
INT8_CHANNEL = CacheFormat("int8-channel", 1, static_scales=True)
INT8_HEAD = CacheFormat("int8-head", 1, head_bytes=5)  # a float32 scale and an int8 zero point
CACHE_FORMATS: Mapping[str, CacheFormat] = {form.name: form for form in (FP32, FP16, INT8_CHANNEL, INT8_HEAD)}


def scale_name(layer: int, part: Part) -> str:
    """The canonical tensor of a layer's scales: float32 (kv_heads * head_dim,), one for each column of the cache."""
    return f"model.layers.{layer}.self_attn.{part}_cache.scales"


def is_cache_scale(name: str) -> bool:
    """Whether a canonical tensor is one of those."""
    return name.endswith("_cache.scales")


def cache_scales(weights: Weights, layer: int, part: Part) -> NDArray[np.float32]:
    """A layer's scales (kv_heads * head_dim,)."""
    return np.asarray(weights[scale_name(layer, part)], np.float32)


def scales_for(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales with which values up to ``largest`` in magnitude fill 8 bits; 1 for a column that is always zero."""
    scales = largest.astype(np.float32) / np.float32(_LARGEST_CODE)
    usable = scales >= np.finfo(np.float32).tiny  # kernels multiply by the inverse
    return np.where(usable, scales, np.float32(1)).astype(np.float32)
