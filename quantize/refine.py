"""Improving codes and scales in turns, each step against the same loss, tr((W - Q) H (W - Q)^T).

Codes: coordinate descent, as in Behdin et al. 2023, "QuantEase". Scales: each group's least squares scale for its
codes, as in Zhang et al. 2024, "COMQ"; rounded to the grid, and taken only if that helps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tensor import CODE_RANGE, QuantizedTensor, to_scale_grid

ROUNDS = 2  # a third one changed the loss by less than a thousandth
_ROWS_AT_ONCE = 8192

Array = NDArray[np.float32]


def refine(weight: Array, hessian: Array, start: QuantizedTensor, rounds: int = ROUNDS) -> QuantizedTensor:
    """A quantised tensor whose loss is not above that of ``start``.

    weight   float32 (out, in)
    hessian  float32 (in, in), damped
    """
    group = start.group
    codes = start.codes.T.astype(np.float32)  # (in, out), so that a column of the weight is one piece of memory
    scales = start.scales.T.copy()  # (groups, out)
    steps = np.repeat(scales, group, axis=0)
    gradient = hessian @ (codes * steps - weight.T)  # half the loss's gradient, (in, out)
    for _ in range(rounds):
        for index in range(len(scales)):
            rows = slice(index * group, (index + 1) * group)
            change = _refit_scale(codes[rows], scales[index], gradient[rows], hessian[rows, rows])
            gradient += hessian[:, rows] @ (codes[rows] * change)
            scales[index] += change
        for index in range(len(scales)):
            rows = slice(index * group, (index + 1) * group)
            changes = _descend(codes[rows], scales[index], gradient[rows], hessian[rows, rows], start.bits)
            gradient += hessian[:, rows] @ changes
    return QuantizedTensor(np.ascontiguousarray(codes.T).astype(np.int8), np.ascontiguousarray(scales.T), start.bits)


def _refit_scale(codes: Array, scales: Array, gradient: Array, hessian: Array) -> Array:
    """The change of one group's scales (out,) to the best ones on the grid; 0 where that would not help."""
    slope = (codes * gradient).sum(0)
    curvature = np.maximum((codes * (hessian @ codes)).sum(0), np.float32(1e-30))
    change: Array = to_scale_grid(scales - slope / curvature) - scales
    change[change * (2 * slope + change * curvature) >= 0] = 0
    return change


def _descend(codes: Array, scales: Array, gradient: Array, hessian: Array, bits: int) -> Array:
    """Set each code of one group to the best one given all others; the changes of the weights (group, out)."""
    low, high = CODE_RANGE[bits]
    local = gradient.copy()
    changes = np.empty_like(local)
    for row in range(len(codes)):
        aim = codes[row] - local[row] / (hessian[row, row] * scales)
        best = np.clip(np.rint(aim), low, high)
        changes[row] = (best - codes[row]) * scales
        codes[row] = best
        if row + 1 < len(codes):
            local[row + 1 :] += hessian[row + 1 :, row, None] * changes[row]
    return changes


def output_error(weight: Array, hessian: Array, quantized: QuantizedTensor) -> float:
    """Size of the change of the layer's output relative to the output: sqrt(tr(E H E^T) / tr(W H W^T))."""
    change = whole = 0.0
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        error = quantized.rows(start, start + len(rows)).dequantize() - rows
        change += float(np.vdot(error @ hessian, error))
        whole += float(np.vdot(rows @ hessian, rows))
    return (max(change, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
