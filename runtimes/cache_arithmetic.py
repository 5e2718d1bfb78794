"""The arithmetic of caches in int8, emulated."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..export.to_torch import CacheArithmetic
from ..quantize.cache import Head, Part, cache_scales
from ..quantize.store import Weights


def int8_per_channel(weights: Weights) -> CacheArithmetic:
    """Each column of keys and values rounded to int8 with its own scale, one of ``weights``.

    Follows ONNX Runtime's GroupQueryAttention (MlasKVQuantize): a product with the scale's inverse, a half to the even
    neighbour, and what does not fit becomes -128 or 127. Queries stay in fp32, and a token sees its own keys and values
    rounded too. Tests hold it to within float rounding of the operator itself.
    """

    @cache
    def scales(layer: int, part: Part) -> Tensor:
        return torch.from_numpy(cache_scales(weights, layer, part).copy())

    def keep(x: Tensor, layer: int, part: Head) -> Tensor:
        if part == "query":
            return x
        scale = scales(layer, part).reshape(1, x.shape[1], 1, x.shape[3])  # (1, kv_heads, 1, head_dim)
        return torch.clamp(torch.round(x * (1 / scale)), -128, 127) * scale

    return keep
