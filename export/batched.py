"""Many sequences through a decoder side by side: layer after layer, so that each weight is read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from ..quantize.store import Dense, Weights
from ..quantize.tensor import QuantizedTensor
from .config import Attention
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
    """Weights that keep the last few tensors asked for, dequantised, so that all threads share one reading."""

    def __init__(self, weights: Weights, count: int = 6) -> None:
        self._weights = weights
        self._count = count
        self._held: dict[str, Dense] = {}
        self._lock = Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> Dense:
        with self._lock:
            if name not in self._held:
                while len(self._held) >= self._count:
                    del self._held[next(iter(self._held))]
                tensor = self._weights[name]
                self._held[name] = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
            return self._held[name]


class Batched:
    """An Ops over tuples of tensors, one for each sequence, each (1, tokens, width).

    ops      one for each sequence, as each has a cache; they share weights that are Kept
    pool     computes the sequences side by side
    skipped  linears that are not computed but give nothing: the head, where nobody wants logits
    """

    def __init__(self, ops: Sequence[TorchOps], pool: ThreadPoolExecutor, skipped: Collection[str] = ()) -> None:
        self._ops = ops
        self._pool = pool
        self._skipped = skipped

    def _each(self, compute: Callable[..., _Result], *values: Sequence[Tensor]) -> tuple[_Result, ...]:
        return tuple(self._pool.map(compute, self._ops, *values))

    def embed(self, tokens: Batch, name: str) -> Batch:
        """See Ops."""
        return self._each(lambda ops, x: ops.embed(x, name), tokens)

    def linear(self, x: Batch, names: tuple[str, ...]) -> Batch:
        """See Ops."""
        if names[0] in self._skipped:
            return tuple(part[..., :0] for part in x)
        return self._each(lambda ops, part: ops.linear(part, names), x)

    def rms_norm(self, x: Batch, name: str, epsilon: float) -> Batch:
        """See Ops."""
        return self._each(lambda ops, part: ops.rms_norm(part, name, epsilon), x)

    def add_norm(self, x: Batch, residual: Batch, name: str, epsilon: float) -> tuple[Batch, Batch]:
        """See Ops."""
        pairs = self._each(lambda ops, part, rest: ops.add_norm(part, rest, name, epsilon), x, residual)
        normed, total = zip(*pairs, strict=True)
        return normed, total

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

    def last_token(self, x: Batch) -> Batch:
        """See Ops. All tokens are wanted."""
        return x
