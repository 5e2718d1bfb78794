"""How fast this machine reads and copies memory: what decoding is limited by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES = 256 << 20  # far more than any cache holds
_REPEATS = 7


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second, the best of several tries: reading, and copying (bytes read and bytes written)."""

    read: float
    copy: float
    threads: int

    @property
    def best(self) -> float:
        """The larger of both: what the memory has been seen to do."""
        return max(self.read, self.copy)

    @property
    def how(self) -> str:
        """In words."""
        return f"numpy's max over, and copy of, {_BYTES >> 20} MB of float32 in {self.threads} threads, the best tries"


def measure_bandwidth(threads: int, size_bytes: int = _BYTES) -> Bandwidth:
    """Stream arrays of ``size_bytes`` in all, a part for each thread; numpy lets go of the interpreter meanwhile."""
    parts = [np.ones(max(1, size_bytes // 4 // threads), np.float32) for _ in range(threads)]
    copies = [np.empty_like(part) for part in parts]
    size = sum(part.nbytes for part in parts)
    with ThreadPoolExecutor(threads) as pool:
        read = _fastest(lambda: list(pool.map(np.max, parts)))
        copy = _fastest(lambda: list(pool.map(_copy, copies, parts)))
    return Bandwidth(size / read, 2 * size / copy, threads)


def best_of(one: Bandwidth, other: Bandwidth) -> Bandwidth:
    """The better figures of two measurements: other work on the machine only ever lowers them."""
    return Bandwidth(max(one.read, other.read), max(one.copy, other.copy), one.threads)


def _copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    np.copyto(target, source)


def _fastest(work: Callable[[], Sequence[Any]]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):  # the first touches the pages
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
