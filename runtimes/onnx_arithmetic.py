"""The arithmetic of ONNX Runtime's int8 kernels, emulated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..export.to_onnx import block_of
from ..quantize.tensor import QuantizedTensor
from .executorch_arithmetic import int8_per_token


def int8_per_block(x: Tensor, weight: QuantizedTensor) -> Tensor:
    """MatMulNBits at accuracy_level 4: each block of the input is rounded to int8 with its own scale, max|x| / 127.

    x is (..., in), blocks are those of the weight. Follows MLAS's CompInt8 kernels (onnxruntime/core/mlas/lib,
    sqnbitgemm: QuantizeARow); tests hold it to within float rounding of the operator itself.
    """
    block = block_of(weight)
    padding = -x.shape[-1] % block
    blocks = torch.nn.functional.pad(x, (0, padding)).unflatten(-1, (-1, block))  # (..., blocks, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = torch.round(blocks * torch.where(largest > 0, 127 / largest, 0))
    rounded: Tensor = (codes * (largest / 127)).flatten(-2)[..., : x.shape[-1]]
    return rounded


def int8_on_arm(x: Tensor, weight: QuantizedTensor) -> Tensor:
    """The same operator on ARM cores with dot products: int4 weights in blocks of 32 or more go to KleidiAI.

    KleidiAI rounds each token (..., in) by its own range with a zero point (kai_lhs_quant_pack_qai8dxp_f32), which is
    XNNPACK's formula. On cores without dot products the operator computes in fp32. Tests hold all three to the operator
    on emulated cores.
    """
    kleidi = weight.bits == 4 and block_of(weight) % 32 == 0
    return int8_per_token(x, weight) if kleidi else int8_per_block(x, weight)
