"""What calibration needs to know of a layer's inputs. Sums are taken in one order, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import product

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512  # columns: one product for each pair of blocks

Array = NDArray[np.float32]


def second_moments(left: Sequence[Array], right: Sequence[Array], pool: Executor) -> Array:
    """Mean of x^T y over all tokens, float32 (in, in), for inputs x and y (..., in); symmetric if they are the same."""
    xs, ys = ([part.reshape(-1, part.shape[-1]) for part in parts] for parts in (left, right))
    width, tokens = xs[0].shape[1], np.float32(sum(map(len, xs)))
    result = np.empty((width, width), np.float32)
    blocks = [slice(start, min(start + _BLOCK, width)) for start in range(0, width, _BLOCK)]
    symmetric = left is right

    def fill(pair: tuple[slice, slice]) -> None:
        rows, columns = pair
        total = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        for x, y in zip(xs, ys, strict=True):
            total += x[:, rows].T @ y[:, columns]
        result[rows, columns] = total / tokens
        if symmetric:
            result[columns, rows] = result[rows, columns].T

    pairs = [pair for pair in product(blocks, blocks) if not symmetric or pair[0].start <= pair[1].start]
    list(pool.map(fill, pairs))
    return result


def magnitudes(inputs: Sequence[Array]) -> Array:
    """Mean of |x| over all tokens, float32 (in,), for inputs (..., in)."""
    parts = [part.reshape(-1, part.shape[-1]) for part in inputs]
    total = np.sum([np.abs(part).sum(0, dtype=np.float64) for part in parts], 0)
    return np.asarray(total / sum(map(len, parts)), np.float32)
