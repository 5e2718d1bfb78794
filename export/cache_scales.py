"""Measuring how large keys and values get, for caches whose scales are constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..quantize.cache import PARTS, Head, Part, is_cache_scale, scale_name, scales_for
from ..quantize.store import CanonicalTensor, Weights
from .batched import Batched, one_thread_each
from .config import Attention, ModelConfig
from .decoder import decoder
from .rope import rotary_tables
from .to_torch import CacheArithmetic, TorchOps

_HEADROOM = 1.1  # over the largest value of the text that was measured; others have larger ones
_PLACES = 2  # halves of the text that are computed side by side, whatever the machine has: scales are the same on all

_Largest = dict[tuple[int, Part], NDArray[np.float32]]


class WithScales:
    """Canonical weights and the scales of the cache beside them."""

    def __init__(self, scales: Mapping[str, NDArray[np.float32]], weights: Weights) -> None:
        self._scales, self._weights = scales, weights

    def __contains__(self, name: object) -> bool:
        return name in self._scales or name in self._weights

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        yield from self._scales

    def __getitem__(self, name: str) -> CanonicalTensor:
        return self._scales[name] if is_cache_scale(name) else self._weights[name]


def measure_scales(
    weights: Weights, config: ModelConfig, tokens: NDArray[np.int64], step: Callable[[], None]
) -> dict[str, NDArray[np.float32]]:
    """The scales of every column of every layer's cache, by ``scale_name``, from keys and values over ``tokens``.

    weights  canonical
    tokens   ids (sequences, tokens), two sequences at least
    step     called once for each layer

    A rotated key is as large as its pair of columns can get at any position, sqrt(k[i]**2 + k[i + head_dim / 2]**2), so
    that short sequences are enough for a long context.
    """
    places: list[_Largest] = [{} for _ in range(_PLACES)]
    batch = tuple(map(torch.from_numpy, np.array_split(tokens, _PLACES)))
    with ThreadPoolExecutor(_PLACES) as pool, one_thread_each(), torch.inference_mode():

        def ops(index: int) -> TorchOps:
            hear = _listen(places[index], config, step if index == 0 else lambda: None)
            return TorchOps(weights, config, tokens.shape[1], cache=hear)

        decoder(Batched(ops, pool, skipped=(config.head_name,)), config, batch)
    return {
        scale_name(layer, part): scales_for(
            np.float32(_HEADROOM) * np.maximum.reduce([place[layer, part] for place in places])
        )
        for layer in range(len(config.layers))
        for part in PARTS
    }


def _listen(largest: _Largest, config: ModelConfig, step: Callable[[], None]) -> CacheArithmetic:
    """A cache that keeps everything exactly, and notes the largest magnitude of each column."""

    def hear(x: Tensor, layer: int, part: Head) -> Tensor:
        if part == "query":
            return x
        found = _magnitudes(x, config.layers[layer].attention, part)
        largest[layer, part] = found.amax((0, 2)).flatten().numpy()  # (kv_heads * head_dim,)
        if part == "value":
            step()
        return x

    return hear


def _magnitudes(x: Tensor, attention: Attention, part: Part) -> Tensor:
    """What x (batch, kv_heads, tokens, head_dim) may become in magnitude at other positions."""
    if part == "value" or attention.rope is None:
        return x.abs()
    sines = torch.from_numpy(rotary_tables(attention.rope, attention.head_dim, 2)[1])
    turned = (sines != 0).any(0).repeat(2)  # (head_dim,); of some families a part of a head is not rotated
    first, second = x.chunk(2, -1)
    return torch.where(turned, torch.hypot(first, second).repeat(1, 1, 1, 2), x.abs())
