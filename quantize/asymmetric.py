"""Making up in a layer for what the layers before it lost.

Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration": the outputs to come close to
are those of the source model, while the inputs are those of the model quantised so far. With the least squares solution
for these as the weight to quantise, any solver for one Hessian does it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def correction(hessian: Array, drift: Array) -> Array:
    """What to multiply a weight (out, in) with from the right and add to it, so that W' x' is closest to W x.

    hessian  float32 (in, in): mean of x'^T x' over many tokens, damped; x' are the inputs as quantised so far
    drift    float32 (in, in): mean of (x - x')^T x'; x are the source model's inputs
    """
    solved: Array = np.linalg.solve(hessian, drift.T).T
    return np.ascontiguousarray(solved)
