"""genai_config.json: what onnxruntime-genai needs to know to run the ONNX artifact as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .config import ModelConfig
from .onnx_file import MODEL_FILE


def genai_config(
    config: ModelConfig, context: int, stop_tokens: Sequence[int], raw: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of genai_config.json.

    ``raw`` is config.json, for the token ids that our own configuration does not keep. The keys are those of
    onnxruntime-genai's src/config.h.
    """
    attention = config.layers[0].attention
    begin, pad = raw.get("bos_token_id"), raw.get("pad_token_id")
    stops = list(stop_tokens)
    return {
        "model": {
            "type": "llama",
            "bos_token_id": begin if isinstance(begin, int) else stops[0],
            "eos_token_id": stops if len(stops) > 1 else stops[0],
            "pad_token_id": pad if isinstance(pad, int) else stops[0],
            "vocab_size": config.vocab_size,
            "context_length": context,
            "decoder": {
                "filename": MODEL_FILE,
                "head_size": attention.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": attention.heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": attention.kv_heads,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": context,
            "min_length": 0,
            "do_sample": False,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def genai_config_bytes(config: ModelConfig, context: int, stop_tokens: Sequence[int], raw: Mapping[str, Any]) -> bytes:
    """The file itself."""
    return (json.dumps(genai_config(config, context, stop_tokens, raw), indent=2) + "\n").encode()
