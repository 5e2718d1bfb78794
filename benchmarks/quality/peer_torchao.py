"""torchao's int4 weight-only quantisation, weight by weight. Usage: python peer_torchao.py IN OUT

IN and OUT are safetensors: weights (out, in) in float32, and the same after quantising and dequantising.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

GROUP = 32


def main() -> None:
    """Quantise every weight of IN, symmetric, in groups of 32."""
    source, out = sys.argv[1:]
    result, size = {}, 0.0
    for name, weight in load_file(source).items():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(linear, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)))
        result[name] = linear.weight.dequantize().contiguous()
        size += weight.numel() * (0.5 + 2 / GROUP)
    save_file(result, out, {"bytes": str(int(size))})


if __name__ == "__main__":
    main()
