"""GPTQ: rounding errors of one column are made up for by the columns that follow.

Frantar, Ashkboos, Hoefler and Alistarh 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", with activation order and static groups. Computed as Chee, Cai, Kuleshov and De Sa 2023, "QuIP", show it
to be (theorem 6): H = L D L^T with a unit lower triangle L, columns rounded from the last to the first, each after
adding the weighted errors of those behind it. That needs one Cholesky factor and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor import CODE_RANGE

DAMPING = 0.01  # of the mean diagonal, added to it: a column that the text never used must not divide by zero
_BLOCK = 64  # columns whose errors reach the columns before them in one matrix product

Array = NDArray[np.float32]


def damped(hessian: Array, damping: float = DAMPING) -> Array:
    """A copy of a Hessian (in, in) that is positive definite; of all zeros, the identity."""
    result = hessian.copy()
    mean = float(np.diagonal(hessian).mean())
    result.flat[:: len(result) + 1] += np.float32(damping * mean if mean > 0 else 1.0)
    return result


@dataclass(frozen=True)
class Factor:
    """L of H = L D L^T for the columns in this order."""

    order: NDArray[np.int64]
    lower: Array


def factorize(hessian: Array) -> Factor:
    """Factor a damped Hessian (in, in), its columns ordered by use: the most used one is rounded first."""
    order = np.argsort(np.diagonal(hessian), kind="stable")
    return Factor(order, _unit_lower(hessian[np.ix_(order, order)]))


def gptq_codes(weight: Array, factor: Factor, scales: Array, bits: int) -> NDArray[np.int8]:
    """Codes int8 (out, in) for given scales that make tr((W - Q) H (W - Q)^T) small.

    weight  float32 (out, in)
    factor  of H, the damped x^T x of the inputs over many tokens
    scales  float32 (out, groups), on the grid
    """
    order, lower = factor.order, factor.lower
    group = weight.shape[1] // scales.shape[1]
    steps = scales.T[order // group]  # (in, out), so that a column of the weight is one piece of memory
    target = weight.T[order]
    errors = np.empty_like(target)  # what was lost so far: target - codes * steps
    codes = np.empty(target.shape, np.int8)
    low, high = CODE_RANGE[bits]
    for stop in range(len(order), 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        wanted = target[start:stop] + lower[stop:, start:stop].T @ errors[stop:]
        for column in range(stop - 1, start - 1, -1):
            behind = slice(column + 1, stop)
            aim = wanted[column - start] + lower[behind, column] @ errors[behind]
            code = np.clip(np.rint(aim / steps[column]), low, high)
            codes[column] = code
            errors[column] = target[column] - code * steps[column]
    result = np.empty((len(weight), len(order)), np.int8)
    result[:, order] = codes.T
    return result


def _unit_lower(hessian: Array) -> Array:
    """L of H = L D L^T, with ones on its diagonal; in float64 where float32 cannot factor it."""
    try:
        factor = _cholesky(hessian)
    except np.linalg.LinAlgError:
        factor = _cholesky(hessian.astype(np.float64))
    return np.asarray(factor / np.diagonal(factor), np.float32)


def _cholesky(matrix: NDArray[Any]) -> Array:
    return np.asarray(np.linalg.cholesky(matrix), np.float32)
