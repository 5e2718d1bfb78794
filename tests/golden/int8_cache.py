"""A tiny model with an int8 cache, for runtimes in other languages, with weights that numpy alone makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pocketlm.export.config import ModelConfig, parse_config
from pocketlm.export.shapes import tensor_shapes
from pocketlm.export.to_onnx import write_onnx
from pocketlm.quantize.cache import INT8_CHANNEL, PARTS, scale_name
from pocketlm.runtimes.onnx_session import OnnxSession

CONTEXT = 32
_PROMPT = (5, 40, 17, 3, 28, 9, 51)
_CLEAR = 0.05  # logits between the likeliest token and the next: no rounding of another processor decides


def _config() -> ModelConfig:
    return parse_config(
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": True,
        },
        CONTEXT,
    )  # fmt: skip


def write_model(folder: Path) -> None:
    """model.onnx and model.onnx.data."""
    config, random = _config(), np.random.default_rng(3)
    weights = {
        name: random.uniform(-0.6, 0.6, shape).astype(np.float32) + np.float32(len(shape) == 1)
        for name, shape in tensor_shapes(config).items()
    }
    for layer in range(len(config.layers)):
        for part in PARTS:
            weights[scale_name(layer, part)] = random.uniform(0.02, 0.06, 16).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(folder, config, weights, CONTEXT, INT8_CHANNEL)


def greedy(folder: Path) -> dict[str, Any]:
    """A prompt and its likeliest continuation, as long as that is clear."""
    session = OnnxSession(folder, 1)
    logits, continuation = session.run(list(_PROMPT)), []
    while session.position < CONTEXT:
        first, second = np.sort(logits)[:-3:-1]
        if first - second < _CLEAR:
            break
        continuation.append(int(logits.argmax()))
        logits = session.run(continuation[-1:])
    return {"prompt": list(_PROMPT), "continuation": continuation}
