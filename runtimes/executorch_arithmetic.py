"""The arithmetic of XNNPACK's int8 activations, emulated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.tensor import QuantizedTensor


def int8_per_token(x: Tensor, weight: QuantizedTensor) -> Tensor:
    """The input of a quantised linear as its kernel sees it: each token's (..., in) rounded to int8 by its own range.

    Follows XNNPACK (src/xnnpack/quantization.h, xnn_qd8_asymmetric_quantization_params): the range includes 0, and the
    zero point comes from that end of the range where it causes the smaller error.
    """
    lowest = x.amin(-1, keepdim=True).clamp(max=0)
    highest = x.amax(-1, keepdim=True).clamp(min=0)
    # Not 255 / (...), which torch computes as a product with the reciprocal: where values lie on a grid, as rows of an
    # int8 table do, the last bit decides how a half is rounded.
    scale = torch.where(lowest == highest, 1, torch.tensor(255.0) / (highest - lowest))
    low, high = lowest * scale, highest * scale
    zero = torch.where((-128 + low) + (127 + high) > 0, -128 - low, 127 - high)
    zero = torch.round(zero.clamp(-128, 127))
    codes = (torch.round(x * scale) + zero).clamp(-128, 127)
    return (codes - zero) * (1 / scale)
