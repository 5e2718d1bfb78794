"""Round to nearest, with the scale of each group chosen to lose the least."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .tensor import CODE_RANGE, LARGEST_SCALE, QuantizedTensor, to_scale_grid

# Candidate scales as multiples of max|w| / 7.5. Clipping a few outliers often costs less than a coarser grid; below
# .62 no group of the models measured found its best.
_SHRINKAGE = np.linspace(0.62, 1.08, 16, dtype=np.float32)
_CHUNK_VALUES = 1 << 16  # of float32: a working set (three arrays) that stays in the second-level cache


def round_to_nearest(weight: NDArray[np.float32], bits: int, group: int | None) -> QuantizedTensor:
    """Quantise float32 (out, in); ``group`` None means one scale for each row.

    For 4 bits the scale is the one of several candidates with the least squared error; for 8 bits it is max|w| / 127.
    The scale is rounded to the grid first and the codes chosen for the rounded scale.

    Raises InputError if the group does not divide the row, or a group's values are too large for the scales' grid.
    """
    columns = weight.shape[1]
    scales = best_scales(weight, bits, group)
    codes = np.empty(weight.shape, np.int8)
    for part in _row_chunks(weight):
        grouped = weight[part].reshape(-1, scales.shape[1], columns // scales.shape[1])
        codes[part] = nearest_codes(grouped, scales[part], bits).reshape(-1, columns)
    return QuantizedTensor(codes, scales, bits)


def best_scales(
    weight: NDArray[np.float32], bits: int, group: int | None, importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Scales float32 (out, groups) on the grid, as ``round_to_nearest`` chooses them; raises what it raises.

    importance  float32 (in,): how much a squared error in each column counts; None is the same for all
    """
    columns = weight.shape[1]
    group = group or columns
    if columns % group:
        raise InputError(f"group {group} does not divide {columns} columns")
    scales = np.empty((len(weight), columns // group), np.float32)
    for part in _row_chunks(weight):
        grouped = weight[part].reshape(-1, columns // group, group)
        if bits == 4:
            known = None if importance is None else importance.reshape(-1, group)
            scales[part] = _best_scales(grouped, bits, known)
        else:
            scales[part] = _widest_scales(grouped, bits)
    return scales


def _row_chunks(weight: NDArray[np.float32]) -> Iterator[slice]:
    rows = max(1, _CHUNK_VALUES // weight.shape[1])
    return (slice(start, start + rows) for start in range(0, len(weight), rows))


def nearest_codes(grouped: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.int8]:
    """Codes int8 (out, groups, group) nearest to the weights, for given scales (out, groups)."""
    low, high = CODE_RANGE[bits]
    scaled = grouped * (np.float32(1) / scales)[:, :, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, low, high, out=scaled)
    return scaled.astype(np.int8)


def _widest_scales(grouped: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The scale that clips nothing (before it is rounded)."""
    widest = np.abs(grouped).max(-1) / np.float32(CODE_RANGE[bits][1])
    _check_range(widest)
    return to_scale_grid(widest)


def _best_scales(
    grouped: NDArray[np.float32], bits: int, importance: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The candidate with the least squared error, each column weighed; the first of equals.

    All is computed with a group's columns along the first axis: numpy then works on rows of thousands of groups.
    """
    low, high = CODE_RANGE[bits]
    out, groups, size = grouped.shape
    columns = np.ascontiguousarray(grouped.reshape(-1, size).T)  # (group, out * groups)
    widest = np.maximum(columns.max(0), -columns.min(0)) / np.float32(high + 0.5)  # (out * groups,)
    _check_range(widest)
    candidates = to_scale_grid(_SHRINKAGE[:, None] * widest)  # (candidates, out * groups)
    inverses = np.float32(1) / candidates
    known = None if importance is None else np.ascontiguousarray(np.tile(importance, (out, 1)).T)  # (group, ...)
    errors = np.empty_like(candidates)
    scaled, rounded = np.empty_like(columns), np.empty_like(columns)
    for inverse, error in zip(inverses, errors, strict=True):
        np.multiply(columns, inverse, out=scaled)
        np.rint(scaled, out=rounded)
        np.clip(rounded, low, high, out=rounded)
        scaled -= rounded
        if known is None:
            np.einsum("ig,ig->g", scaled, scaled, out=error)
        else:
            np.einsum("ig,ig,ig->g", scaled, scaled, known, out=error)
    errors *= candidates
    errors *= candidates  # of the weights, not of what they were divided by
    best = np.take_along_axis(candidates, errors.argmin(0)[None], 0)
    return best.reshape(out, groups)


def _check_range(scales: NDArray[np.float32]) -> None:
    if scales.size and not scales.max() <= LARGEST_SCALE:
        raise InputError(f"a weight is too large to quantise: its scale would be {scales.max():.4g}, over 65280")


def relative_error(weight: NDArray[np.float32], quantized: QuantizedTensor) -> float:
    """|w - dequantised| / |w| in the Frobenius norm; 0 for a tensor of zeros."""
    difference, norm = squared_error(weight, quantized)
    return (difference / norm) ** 0.5 if norm else 0.0


def squared_error(weight: NDArray[np.float32], quantized: QuantizedTensor) -> tuple[float, float]:
    """|w - dequantised|**2 and |w|**2, which add up over the rows of a tensor."""
    difference = norm = 0.0
    for rows in _row_chunks(weight):
        part = weight[rows]
        delta = quantized.rows(rows.start, rows.stop).dequantize()
        delta -= part
        difference += float(np.vdot(delta, delta))
        norm += float(np.vdot(part, part))
    return difference, norm
