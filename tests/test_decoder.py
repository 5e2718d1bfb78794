"""The decoder on the fp32 reference against transformers."""

import numpy as np
import pytest
import torch
from pocketlm.export.config import parse_config
from pocketlm.export.decoder import decoder
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_torch import TorchOps, reference_logits, relative_noise
from pocketlm.runtimes.judge import CheckpointWeights
from tiny import LLAMA3_ROPE, tiny_llama

VARIANTS = {
    "tied": {"tied": True},
    "untied with biases": {"attention_bias": True, "mlp_bias": True},
    "llama 3 rope": {"rope": LLAMA3_ROPE, "context": 512},
    "linear rope": {"rope": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "one kv head, fp16 file": {"kv_heads": 1, "dtype": "float16"},
    "no grouping, bf16 shards": {"kv_heads": 4, "dtype": "bfloat16", "shards": 3},
}


def transformers_logits(folder, tokens):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(tokens)).logits.numpy()


def random_tokens(batch, length, vocab=512, seed=0):
    return np.random.default_rng(seed).integers(3, vocab, (batch, length)).astype(np.int64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tmp_path, variant):
    folder = tiny_llama(tmp_path / "m", **VARIANTS[variant])
    checkpoint = open_checkpoint(str(folder))
    tokens = random_tokens(2, 100)
    logits = reference_logits(CheckpointWeights(checkpoint), parse_config(checkpoint.config), tokens)
    expected = transformers_logits(folder, tokens)
    assert expected.std() > 0.3
    assert np.abs(logits - expected).max() <= 1e-4


def test_prefill_then_decode_equals_one_pass(tiny_folder):
    checkpoint = open_checkpoint(str(tiny_folder))
    config, weights = parse_config(checkpoint.config), CheckpointWeights(checkpoint)
    tokens = random_tokens(1, 24)
    whole = reference_logits(weights, config, tokens)
    ops = TorchOps(weights, config, 24)
    with torch.inference_mode():
        parts = [decoder(ops, config, torch.from_numpy(part)) for part in np.split(tokens, [9, 10, 17, 23], axis=1)]
    assert np.abs(torch.cat(parts, 1).numpy() - whole).max() <= 1e-4
    ops.reset()
    with torch.inference_mode():
        again = decoder(ops, config, torch.from_numpy(tokens))
    assert np.array_equal(again.numpy(), whole)


def test_noise_is_small_reproducible_and_felt(tiny_folder):
    checkpoint = open_checkpoint(str(tiny_folder))
    config, weights = parse_config(checkpoint.config), CheckpointWeights(checkpoint)
    tokens = random_tokens(1, 8)
    quiet = reference_logits(weights, config, tokens)
    noisy = [reference_logits(weights, config, tokens, embedding_noise=relative_noise(1e-3, 7)) for _ in range(2)]
    assert np.array_equal(*noisy)
    assert 1e-6 < np.abs(noisy[0] - quiet).max() < 0.1
