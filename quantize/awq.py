"""AWQ: give the input columns that matter most the finest steps.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization". A weight's columns are multiplied by factors, and what
stands in front of the layer (a norm, or the rows of another projection) is divided by them. The model computes the
same, but the rounding error of a column shrinks by its factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .rtn import nearest_codes
from .tensor import to_scale_grid

_EXPONENTS = tuple(index / 10 for index in range(9))  # 0 changes nothing; the best was never above .7
_ROWS = 1024  # looked at for the choice, spread evenly

Array = NDArray[np.float32]


def column_factors(weight: Array, hessian: Array, magnitudes: Array, group: int) -> Array:
    """Factors float32 (in,) for the columns: magnitudes ** exponent, with the exponent that loses least.

    weight      float32 (out, in) of all layers that share the input, one below the other
    hessian     float32 (in, in) of that input
    magnitudes  float32 (in,): mean |x| of each column
    """
    rows = weight[np.linspace(0, len(weight) - 1, min(_ROWS, len(weight))).astype(int)]
    known = np.maximum(magnitudes, max(1e-5, 1e-4 * float(magnitudes.mean())))
    best, least = np.ones_like(known), np.inf
    for exponent in _EXPONENTS:
        factors = known ** np.float32(exponent)
        factors /= np.sqrt(factors.max() * factors.min())
        error = _rounded(rows * factors, group) / factors - rows
        loss = float(np.vdot(error @ hessian, error))
        if loss < least:
            best, least = factors, loss
    return best


def _rounded(weight: Array, group: int) -> Array:
    """4 bits with plain scales: good enough to compare exponents with."""
    grouped = weight.reshape(len(weight), -1, group)
    scales = to_scale_grid(np.abs(grouped).max(-1) / np.float32(7.5))
    return (nearest_codes(grouped, scales, 4) * scales[:, :, None]).reshape(weight.shape)
