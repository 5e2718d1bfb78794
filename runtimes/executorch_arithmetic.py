"""The arithmetic of XNNPACK's int8 activations and of ExecuTorch's int8 cache, emulated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.tensor import QuantizedTensor

_SMALLEST_SCALE = torch.tensor(6.1e-5)  # SMALL_SCALE_THRESHOLD of the kernel, a float32


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


def int8_per_head(x: Tensor) -> Tensor:
    """Queries, keys or values (..., head_dim) as attention over an int8 cache sees them: each rounded by its own range.

    Follows ExecuTorch (kernels/quantized/cpu/op_choose_qparams.cpp and op_quantize.cpp): the range includes 0 and is
    divided in float64; the zero point comes from the end of the range that is farther from 0.
    """
    lowest, highest = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale, lowest, highest = _widened(lowest, highest)
    low, high = lowest.double() / scale, highest.double() / scale
    zero = torch.where(128 - low.abs() < 127 - high.abs(), -128 - low, 127 - high).clamp(-128, 127)
    zero = torch.round(zero.float())
    narrow = scale.float()
    codes = (torch.round(x * (1 / narrow)) + zero).clamp(-128, 127)
    return (codes - zero) * narrow


def _widened(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale in float64 and the two ends of the range, which is made wider where its scale would be too small."""
    scale = (highest.double() - lowest.double()) / 255
    nothing = torch.isinf(1 / scale.float())  # 1 / 0 too
    scale = torch.where(nothing, 0.1, scale)
    small = scale < _SMALLEST_SCALE
    factor = _SMALLEST_SCALE / scale.float()
    width = _SMALLEST_SCALE * 255
    one_sided = (lowest == 0) | (highest == 0)
    wider_low = torch.where(one_sided, torch.where(lowest == 0, 0, -width), lowest * factor)
    wider_high = torch.where(one_sided, torch.where(lowest == 0, width, 0), highest * factor)
    scale = torch.where(small, _SMALLEST_SCALE.double(), scale)
    return scale, torch.where(small, wider_low, lowest), torch.where(small, wider_high, highest)
