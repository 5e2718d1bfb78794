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
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout", "cache_implementation", "embedding_dropout",
        "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "task_specific_params",
    }
)  # fmt: skip

_ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
_COMMON_KEYS = _ROPE_KEYS | {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "attention_bias", "mlp_bias",
}  # fmt: skip
_WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_GEMMA_KEYS = (_COMMON_KEYS | _WINDOW_KEYS) - {"use_sliding_window", "max_window_layers"} | {
    "hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "use_bidirectional_attention", "_sliding_window_pattern", "sliding_window_pattern",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a family's files name and store tensors, where that is not Llama's way. See ``layouts``.

    renames       parts of names (between dots) -> Llama's, applied in order
    transposed    the matrices of layers are (in, out)
    qkv_per_head  a fused qkv_proj has the rows q, k, v of each head together, not those of all heads
    norm_offset   is added to the weights of norms: some families store what is to be added to 1
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False
    qkv_per_head: bool = False
    norm_offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """What distinguishes one model_type.

    models           published models, for the README
    keys             keys of config.json that are read, beside those that ``required_values`` pins down
    required_values  keys whose other values would change the computation, with the values that are supported
    renames          keys that have another name than Llama's
    defaults         what a missing key means, where that is not what it means for Llama
    tied_by_default  what a missing ``tie_word_embeddings`` means
    norm             rms, or layer (with bias)
    norm_before      whether a block norms its input
    norm_after       whether a block norms its output
    qk_norm          norm of queries and keys: head (each head by itself) or row (all heads together)
    window_pattern   of so many layers in turn the last one has no window; 0: layers differ only as config.json says
    positions        rope, or learned
    gated            whether the MLP has a gate
    biases           linears that always have one, by the last part of their names; files say it where they are read
    own_code         published with code of its own, which is not run: transformers or this decoder knows the model
    """

    models: str
    keys: frozenset[str]
    required_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tied_by_default: bool = False
    norm: str = "rms"
    norm_before: bool = True
    norm_after: bool = False
    qk_norm: str | None = None
    window_pattern: int = 0
    positions: str = "rope"
    gated: bool = True
    biases: tuple[str, ...] = ()
    own_code: bool = False
    layout: Layout = Layout()


_QKV = ("q_proj", "k_proj", "v_proj")
_ALL_LINEARS = (*_QKV, "o_proj", "up_proj", "down_proj")
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_NO_WINDOW = {"use_sliding_window": (False, None)}
_GEMMA_VALUES = {"use_bidirectional_attention": (False, None)}
_GEMMA_DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "query_pre_attn_scalar": 256, "scale_embedding": True,
    "sliding_window": 4096,
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "Llama 2, 3, 3.1, 3.2, SmolLM2, TinyLlama",
        keys=_COMMON_KEYS | {"pretraining_tp"},
        required_values={"pretraining_tp": (1, None), "rope_interleaved": (False,)},
    ),
    "qwen2": Family(
        "Qwen2, Qwen2.5",
        keys=_COMMON_KEYS | _WINDOW_KEYS,
        required_values={"use_mrope": (False, None)},
        defaults=_QWEN_WINDOW,
        biases=_QKV,
    ),
    "qwen3": Family(
        "Qwen3", keys=_COMMON_KEYS | _WINDOW_KEYS, defaults=_QWEN_WINDOW | {"head_dim": 128}, qk_norm="head"
    ),
    "mistral": Family("Mistral", keys=_COMMON_KEYS | {"sliding_window"}),
    "phi3": Family(
        "Phi-3, Phi-3.5 mini, Phi-4-mini",
        keys=_COMMON_KEYS | {"original_max_position_embeddings", "partial_rotary_factor", "sliding_window"},
        required_values={"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,)},
        defaults={"rms_norm_eps": 1e-5},
        own_code=True,
    ),
    "gemma2": Family(
        "Gemma 2",
        keys=_GEMMA_KEYS,
        required_values=_GEMMA_VALUES,
        renames={"hidden_activation": "hidden_act"},
        defaults=_GEMMA_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        tied_by_default=True,
        norm_after=True,
        window_pattern=2,
        layout=Layout(norm_offset=1.0),
    ),
    "gemma3_text": Family(
        "Gemma 3 (text)",
        keys=_GEMMA_KEYS | {"rope_local_base_freq"},
        # transformers reads this key and does not use it: who set it may mean either.
        required_values=_GEMMA_VALUES | {"attn_logit_softcapping": (None,)},
        renames={"hidden_activation": "hidden_act"},
        defaults=_GEMMA_DEFAULTS | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
        tied_by_default=True,
        norm_after=True,
        qk_norm="head",
        window_pattern=6,
        layout=Layout(norm_offset=1.0),
    ),
    "smollm3": Family(
        "SmolLM3",
        keys=_COMMON_KEYS | _WINDOW_KEYS | {"no_rope_layers", "no_rope_layer_interval", "pretraining_tp"},
        required_values={"pretraining_tp": (1, 2, None)} | _NO_WINDOW,
        defaults={"no_rope_layer_interval": 4, "rope_theta": 2000000.0, "use_sliding_window": False},
        tied_by_default=True,
    ),
    "granite": Family(
        "Granite 3",
        keys=_COMMON_KEYS | {"embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"},
        defaults={"attention_multiplier": 1.0},
    ),
    "olmo2": Family(
        "OLMo 2",
        keys=_COMMON_KEYS,
        defaults={"rms_norm_eps": 1e-5},
        norm_before=False,
        norm_after=True,
        qk_norm="row",
    ),
    "mixtral": Family(
        "Mixtral",
        keys=_COMMON_KEYS | {"sliding_window", "num_local_experts", "num_experts_per_tok"},
        defaults={"rope_theta": 1000000.0, "norm_topk_prob": True, "rms_norm_eps": 1e-5},
        layout=Layout(
            renames={"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"},
        ),
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        keys=_COMMON_KEYS | _WINDOW_KEYS
        | {"num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
           "decoder_sparse_step", "mlp_only_layers"},
        required_values=_NO_WINDOW,
        renames={"num_experts": "num_local_experts"},
        defaults={"use_sliding_window": False},
        qk_norm="head",
    ),
    "gpt2": Family(
        "GPT-2",
        keys=frozenset({
            "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner", "activation_function",
            "layer_norm_epsilon", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
            "summary_first_dropout", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
            "reorder_and_upcast_attn", "tie_word_embeddings",
        }),
        required_values={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        renames={
            "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
            "n_positions": "max_position_embeddings", "n_inner": "intermediate_size",
            "activation_function": "hidden_act", "layer_norm_epsilon": "rms_norm_eps",
        },
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "ffn_multipliers": 4, "ffn_dim_divisor": 1},
        tied_by_default=True,
        norm="layer",
        positions="learned",
        gated=False,
        biases=_ALL_LINEARS,
        layout=Layout(
            renames={
                "transformer": "model", "wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm", "h": "layers",
                "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_attn": "self_attn.qkv_proj",
                "attn.c_proj": "self_attn.o_proj", "attn": "self_attn", "mlp.c_fc": "mlp.up_proj",
                "mlp.c_proj": "mlp.down_proj",
            },
            transposed=True,
        ),
    ),
    "gpt_neox": Family(
        "GPT-NeoX, Pythia",
        keys=_COMMON_KEYS - {"rms_norm_eps", "num_key_value_heads", "head_dim", "mlp_bias"}
        | {"layer_norm_eps", "rotary_pct", "rotary_emb_base", "use_parallel_residual", "partial_rotary_factor",
           "is_decoder"},
        required_values={"is_decoder": (False, True)},
        renames={
            "layer_norm_eps": "rms_norm_eps", "rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta",
            "use_parallel_residual": "parallel_residual",
        },
        defaults={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "parallel_residual": True},
        norm="layer",
        gated=False,
        biases=_ALL_LINEARS,
        layout=Layout(
            renames={
                "gpt_neox": "model", "embed_in": "embed_tokens", "final_layer_norm": "norm", "embed_out": "lm_head",
                "attention.query_key_value": "self_attn.qkv_proj", "attention.dense": "self_attn.o_proj",
                "attention": "self_attn", "dense_h_to_4h": "up_proj", "dense_4h_to_h": "down_proj",
            },
            qkv_per_head=True,
        ),
    ),
    "openelm": Family(
        "OpenELM",
        keys=frozenset({
            "activation_fn_name", "ffn_dim_divisor", "ffn_multipliers", "ffn_with_glu", "head_dim",
            "max_context_length", "model_dim", "normalization_layer_name", "normalize_qk_projections",
            "num_gqa_groups", "num_kv_heads", "num_query_heads", "num_transformer_layers", "qkv_multipliers",
            "rope_freq_constant", "rope_max_length", "share_input_output_layers", "vocab_size",
        }),
        required_values={
            "ffn_with_glu": (True,), "normalization_layer_name": ("rms_norm",), "normalize_qk_projections": (True,),
        },
        renames={
            "activation_fn_name": "hidden_act", "max_context_length": "max_position_embeddings",
            "model_dim": "hidden_size", "num_transformer_layers": "num_hidden_layers",
            "num_query_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
            "rope_freq_constant": "rope_theta", "share_input_output_layers": "tie_word_embeddings",
        },
        defaults={"ffn_dim_divisor": 256},
        tied_by_default=True,
        qk_norm="head",
        own_code=True,
        layout=Layout(
            renames={
                "transformer": "model", "token_embeddings": "embed_tokens", "attn_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm", "attn.out_proj": "self_attn.o_proj", "attn": "self_attn",
                "ffn.proj_1": "mlp.gate_up_proj", "ffn.proj_2": "mlp.down_proj",
            },
        ),
    ),
}  # fmt: skip

# What is refused by name, with the reason. Anything else that is not above is refused without one.
UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(
        ("gemma3", "gemma3n", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mllama", "phi3_v",
         "idefics3", "smolvlm", "paligemma", "mistral3", "phi4_multimodal", "llama4", "internvl"),
        "it has a vision tower, and only decoders of text are supported (a text-only export of the same model may be)",
    ),
    **dict.fromkeys(
        ("t5", "mt5", "bart", "mbart", "pegasus", "whisper", "marian", "t5gemma", "m2m_100", "led", "blenderbot"),
        "it is an encoder-decoder, and only decoders are supported",
    ),
    **dict.fromkeys(
        ("mamba", "mamba2", "jamba", "falcon_mamba", "rwkv", "recurrent_gemma", "bamba", "zamba", "zamba2",
         "nemotron_h", "granitemoehybrid", "falcon_h1", "lfm2", "qwen3_next"),
        "it has state-space, recurrent or convolutional layers, and only attention is supported",
    ),
    **dict.fromkeys(("bert", "roberta", "deberta-v2", "modernbert", "distilbert"), "it is an encoder, not a decoder"),
}  # fmt: skip
