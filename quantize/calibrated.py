"""A layer's integers chosen for the inputs that it sees: scales, then GPTQ, then refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .gptq import damped, factorize, gptq_codes
from .refine import refine
from .rtn import best_scales
from .tensor import QuantizedTensor

Map = Callable[[Callable[[slice], QuantizedTensor], Iterable[slice]], Iterator[QuantizedTensor]]

_ROWS = 768  # solved together; rows do not depend on each other


def quantize_for_inputs(
    weight: NDArray[np.float32], hessian: NDArray[np.float32], bits: int, group: int | None, run: Map = map
) -> QuantizedTensor:
    """Quantise float32 (out, in) so that the layer's outputs change little.

    hessian  float32 (in, in): x^T x of the layer's inputs, over many tokens
    run      applies a function to each of several parts, as ``map`` does; an executor's map does it side by side

    Raises InputError if the group does not divide the row, or a group's values are too large for the scales' grid.
    """
    safe = damped(hessian)
    scales = best_scales(weight, bits, group, np.diagonal(safe))
    factor = factorize(safe)

    def solve(rows: slice) -> QuantizedTensor:
        solved = QuantizedTensor(gptq_codes(weight[rows], factor, scales[rows], bits), scales[rows], bits)
        return refine(weight[rows], safe, solved) if bits == 4 else solved  # 8 bits leave nothing worth the time

    parts = list(run(solve, [slice(start, start + _ROWS) for start in range(0, len(weight), _ROWS)]))
    codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts])
    return QuantizedTensor(codes, scales, bits)
