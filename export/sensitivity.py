"""How much a model loses when one group of its linears alone is quantised: KL, measured.

One walk of the decoder. It starts with the source model; at each group a variant branches off, in which just that group
is rounded, and all variants go on side by side. So each weight is read once, and a late variant costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..quantize.recipe import Format
from ..quantize.rtn import round_to_nearest
from ..quantize.store import CanonicalTensor, Weights
from .batched import Batched, Kept, one_thread_each
from .config import ModelConfig
from .decoder import decoder
from .folded import Names, Overlay, source_weight
from .to_torch import TorchOps, finished_logits


def group_sensitivities(
    weights: Weights,
    config: ModelConfig,
    formats: Mapping[Names, Format],
    tokens: NDArray[np.int64],
    step: Callable[[], None],
    threads: int,
) -> dict[Names, float]:
    """Mean KL(source || variant), nats, over token ids (sequences, tokens), for each group of names.

    formats  what each group is rounded to in its variant, by round to nearest
    step     called for each group as its variant branches off
    """
    kept = Kept(weights)
    branches: list[Names] = []

    def branch(x: Tensor, names: Names) -> Tensor | None:
        if names not in formats:
            return None
        rounded = {name: _rounded(kept, name, formats[names]) for name in names}
        branches.append(names)
        step()
        return TorchOps(Overlay(rounded, kept), config, 1).linear(x, names)

    with ThreadPoolExecutor(threads) as pool, one_thread_each(), torch.inference_mode():
        batched = Batched(
            lambda index: TorchOps(kept, config, tokens.shape[1]), pool, skipped=(config.head_name,), branch=branch
        )
        source, *variants = decoder(batched, config, (torch.from_numpy(tokens),))
        head = TorchOps(kept, config, 1)

        def log_probabilities(x: Tensor) -> Tensor:
            return torch.log_softmax(finished_logits(head.linear(x, (config.head_name,)), config), -1)

        expected = log_probabilities(source)
        share = expected.exp()

        def divergence(x: Tensor) -> float:
            return float((share * (expected - log_probabilities(x))).sum(-1).mean())

        return dict(zip(branches, pool.map(divergence, variants), strict=True))


def _rounded(weights: Weights, name: str, form: Format) -> CanonicalTensor:
    assert form.bits is not None
    return round_to_nearest(source_weight(weights, name), form.bits, form.group)
