"""Intel's AutoRound. Usage: python peer_autoround.py MODEL_FOLDER TEXT OUT ITERATIONS

Calibrated on the same text as ours. ITERATIONS 0 is its plain rounding. OUT is safetensors: weights (out, in),
dequantised.
"""

from __future__ import annotations

import sys

import torch
from auto_round import AutoRound
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP, SAMPLES, LENGTH = 32, 32, 512


def main() -> None:
    """Quantise the linears of the model's layers, symmetric, in groups of 32."""
    folder, text, out, iterations = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open(text, encoding="utf-8") as file:
        ids = tokenizer(file.read(), return_tensors="pt").input_ids[0]
    starts = torch.linspace(0, len(ids) - LENGTH, SAMPLES).long().tolist()
    data = [{"input_ids": ids[s : s + LENGTH], "attention_mask": torch.ones(LENGTH, dtype=torch.long)} for s in starts]
    loader = torch.utils.data.DataLoader(data, batch_size=1)
    rounder = AutoRound(
        model, tokenizer, scheme="W4A16", group_size=GROUP, sym=True, iters=int(iterations), nsamples=SAMPLES,
        seqlen=LENGTH, dataset=loader, device_map="cpu", amp=False, batch_size=4,
    )  # fmt: skip
    quantised, _ = rounder.quantize()
    result, size = {}, 0.0
    for name, module in quantised.named_modules():
        if ".layers." in name and isinstance(module, torch.nn.Linear):
            result[f"{name}.weight"] = module.weight.detach().float().contiguous()
            size += module.weight.numel() * (0.5 + 2 / GROUP)
    save_file(result, out, {"bytes": str(int(size))})


if __name__ == "__main__":
    main()
