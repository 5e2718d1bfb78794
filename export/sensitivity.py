"""How much a model loses when one group of its linears alone is quantised: KL, measured.

One walk of the decoder. It starts with the source model; at each group a variant branches off, in which just that group
is rounded, and all variants go on side by side. So each weight is read once, and a late variant costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..quantize.recipe import Format
from ..quantize.rtn import round_to_nearest
from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor
from .batched import Kept, one_thread_each
from .config import Attention, ModelConfig
from .decoder import decoder
from .to_torch import TorchOps

Names = tuple[str, ...]
Variants = list[Tensor]  # the source's value first, then one for each branch so far
_Result = TypeVar("_Result")


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
    with ThreadPoolExecutor(threads) as pool, one_thread_each(), torch.inference_mode():
        walk = _Branching(kept, config, formats, tokens.shape[1], pool, step)
        hidden = decoder(walk, config, [torch.from_numpy(tokens)])
        head = TorchOps(kept, config, 1)

        def log_probabilities(x: Tensor) -> Tensor:
            return torch.log_softmax(head.linear(x, (config.head_name,)), -1)

        expected = log_probabilities(hidden[0])
        share = expected.exp()

        def divergence(x: Tensor) -> float:
            return float((share * (expected - log_probabilities(x))).sum(-1).mean())

        return dict(zip(walk.branches, pool.map(divergence, hidden[1:]), strict=True))


class _Branching:
    """An Ops over all variants. ``branches`` are the groups that variants were made for, in their order."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        formats: Mapping[Names, Format],
        context: int,
        pool: ThreadPoolExecutor,
        step: Callable[[], None],
    ) -> None:
        self._weights, self._formats, self._pool, self._step = weights, formats, pool, step
        self._head = config.head_name
        self._new_ops: Callable[[Weights], TorchOps] = lambda each: TorchOps(each, config, context)
        self._ops = self._new_ops(weights)
        self.branches: list[Names] = []

    def _each(self, compute: Callable[..., _Result], *values: Variants) -> list[_Result]:
        """Apply to each variant; a value from before a branch is, for that branch, the source's."""
        count = max(map(len, values))
        filled = [value + [value[0]] * (count - len(value)) for value in values]
        return list(self._pool.map(compute, *filled))

    def embed(self, tokens: Variants, name: str) -> Variants:
        """See Ops."""
        return self._each(lambda x: self._ops.embed(x, name), tokens)

    def linear(self, x: Variants, names: Names) -> Variants:
        """See Ops. The head is left to the caller: logits of all variants would not fit."""
        if names[0] == self._head:
            return x
        results = self._each(lambda part: self._ops.linear(part, names), x)
        if names in self._formats:
            form = self._formats[names]
            rounded = {name: _rounded(self._weights[name], form) for name in names}
            results.append(self._new_ops(_Instead(rounded, self._weights)).linear(x[0], names))
            self.branches.append(names)
            self._step()
        return results

    def rms_norm(self, x: Variants, name: str, epsilon: float) -> Variants:
        """See Ops."""
        return self._each(lambda part: self._ops.rms_norm(part, name, epsilon), x)

    def add_norm(self, x: Variants, residual: Variants, name: str, epsilon: float) -> tuple[Variants, Variants]:
        """See Ops."""
        pairs = self._each(lambda part, rest: self._ops.add_norm(part, rest, name, epsilon), x, residual)
        return [normed for normed, _ in pairs], [total for _, total in pairs]

    def attention(self, qkv: Variants, layer: int, attention: Attention) -> Variants:
        """See Ops. Each variant has an ops, and so a cache, of its own, that is dropped at once."""
        return self._each(lambda part: self._new_ops(self._weights).attention(part, layer, attention), qkv)

    def gated(self, gate_up: Variants, activation: str) -> Variants:
        """See Ops."""
        return self._each(lambda part: self._ops.gated(part, activation), gate_up)

    def last_token(self, x: Variants) -> Variants:
        """See Ops. All tokens are wanted."""
        return x


class _Instead:
    """Some weights in the place of others."""

    def __init__(self, some: Mapping[str, CanonicalTensor], others: Weights) -> None:
        self._some, self._others = some, others

    def __contains__(self, name: object) -> bool:
        return name in self._some or name in self._others

    def __iter__(self) -> Any:
        return iter(self._others)

    def __getitem__(self, name: str) -> CanonicalTensor:
        return self._some[name] if name in self._some else self._others[name]


def _rounded(weight: CanonicalTensor, form: Format) -> CanonicalTensor:
    assert not isinstance(weight, QuantizedTensor), "a source weight"
    assert form.bits is not None
    return round_to_nearest(np.asarray(weight, np.float32), form.bits, form.group)
