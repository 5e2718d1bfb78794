"""The model families that pocketlm reads: one row of data each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Keys of config.json that say nothing about what a trained decoder computes.
HARMLESS_KEYS = frozenset(
    {
        "_name_or_path", "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache",
        "attention_dropout", "hidden_dropout", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
        "unk_token_id", "is_llama_config", "rope_interleaved", "output_attentions", "output_hidden_states",
        "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "is_encoder_decoder",
        "transformers.js_config", "max_length", "temperature", "top_k", "top_p", "do_sample", "name_or_path",
    }
)  # fmt: skip

_LLAMA_KEYS = frozenset(
    {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias", "pretraining_tp",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What distinguishes the config.json of one model_type.

    keys             the keys that are read, or that ``required_values`` pins down
    required_values  keys whose other values would change the computation, with the values that are supported
    tied_by_default  what a missing ``tie_word_embeddings`` means
    """

    keys: frozenset[str]
    required_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tied_by_default: bool = False


FAMILIES: Mapping[str, Family] = {
    # Llama 2 and 3.x, SmolLM2, TinyLlama
    "llama": Family(
        keys=_LLAMA_KEYS,
        required_values={"hidden_act": ("silu",), "pretraining_tp": (1, None), "rope_interleaved": (False,)},
    ),
}
