"""Many inputs through a decoder side by side: layer after layer, so that each weight is read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor
from .config import Attention, Experts, Mlp
from .decoder import every_expert
from .to_torch import TorchOps

Batch = tuple[Tensor, ...]
_Result = TypeVar("_Result")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within, torch and BLAS compute each call in one thread: results do not depend on the number of threads.

    On macOS numpy's Accelerate has no such switch.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


class Kept:
    """Weights that keep the last few tensors asked for, so that all threads share one reading.

    dense  quantised tensors are dequantised once and kept so
    """

    def __init__(self, weights: Weights, count: int = 6, dense: bool = True) -> None:
        self._weights = weights
        self._count = count
        self._dense = dense
        self._held: dict[str, CanonicalTensor] = {}
        self._lock = Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> CanonicalTensor:
        with self._lock:
            if name not in self._held:
                while len(self._held) >= self._count:
                    del self._held[next(iter(self._held))]
                tensor = self._weights[name]
                if self._dense and isinstance(tensor, QuantizedTensor):
                    tensor = tensor.dequantize()
                self._held[name] = tensor
            return self._held[name]


class Batched:
    """An Ops over tuples of tensors, each (batch, tokens, width), that knows nothing of what they are.

    new_ops  makes an ops: each place in a tuple has one of its own, as each has a cache
    pool     computes the places side by side
    skipped  linears that give back their input: the head, whose logits for all tokens would not fit into memory
    branch   (input of the first place, names) -> one more place for the output of that linear, or None. Values from
             before a branch have no such place: there, the first one's value stands.
    """

    def __init__(
        self,
        new_ops: Callable[[int], TorchOps],
        pool: ThreadPoolExecutor,
        skipped: Collection[str] = (),
        branch: Callable[[Tensor, tuple[str, ...]], Tensor | None] | None = None,
    ) -> None:
        self._new_ops = new_ops
        self._ops: list[TorchOps] = []
        self._pool = pool
        self._skipped = skipped
        self._branch = branch

    def _each(self, compute: Callable[..., _Result], *values: Batch) -> tuple[_Result, ...]:
        count = max(map(len, values))
        self._ops += [self._new_ops(index) for index in range(len(self._ops), count)]
        filled = [value + value[:1] * (count - len(value)) for value in values]
        return tuple(self._pool.map(compute, self._ops[:count], *filled))

    def embed(self, tokens: Batch, name: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, x: ops.embed(x, name), tokens)

    def linear(self, x: Batch, names: tuple[str, ...]) -> Batch:
        """See Ops."""
        if names[0] in self._skipped:
            return x
        result = self._each(lambda ops, part: ops.linear(part, names), x)
        more = None if self._branch is None else self._branch(x[0], names)
        return result if more is None else (*result, more)

    def rms_norm(self, x: Batch, name: str, epsilon: float) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.rms_norm(part, name, epsilon), x)

    def add_norm(self, x: Batch, residual: Batch, name: str, epsilon: float) -> tuple[Batch, Batch]:
        """See Ops."""
        pairs = self._each(lambda ops, part, rest: ops.add_norm(part, rest, name, epsilon), x, residual)
        normed, total = zip(*pairs, strict=True)
        return normed, total

    def layer_norm(self, x: Batch, name: str, epsilon: float) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.layer_norm(part, name, epsilon), x)

    def add(self, x: Batch, y: Batch, name: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part, other: ops.add(part, other, name), x, y)

    def scale(self, x: Batch, factor: float, name: str) -> Batch:
        """See Ops. Of a head that is skipped there are no logits to scale."""
        if name == "logits" and self._skipped:
            return x
        return self._each(lambda ops, part: ops.scale(part, factor, name), x)

    def soft_cap(self, x: Batch, cap: float, name: str) -> Batch:
        """See Ops. Of a head that is skipped there are no logits to bend."""
        if name == "logits" and self._skipped:
            return x
        return self._each(lambda ops, part: ops.soft_cap(part, cap, name), x)

    def add_positions(self, x: Batch, name: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.add_positions(part, name), x)

    def attention(self, qkv: Batch, layer: int, attention: Attention) -> Batch:
        """See Ops. Nothing follows these tokens, so the cache is dropped at once."""

        def attend(ops: TorchOps, part: Tensor) -> Tensor:
            result = ops.attention(part, layer, attention)
            ops.reset()
            return result

        return self._each(attend, qkv)

    def gated(self, gate_up: Batch, activation: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.gated(part, activation), gate_up)

    def activate(self, x: Batch, activation: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.activate(part, activation), x)

    def experts(self, x: Batch, layer: int, mlp: Mlp) -> Batch:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Batch, layer: int, experts: Experts) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.route(part, layer, experts), logits)

    def weigh(self, x: Batch, weights: Batch, layer: int, expert: int) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part, shares: ops.weigh(part, shares, layer, expert), x, weights)

    def last_token(self, x: Batch) -> Batch:
        """See Ops. All tokens are wanted."""
        return x
