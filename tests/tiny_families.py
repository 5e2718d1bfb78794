"""Tiny random models of every family, saved as transformers publishes them."""

from functools import cache

import numpy as np
from openelm import openelm_logits, write_openelm
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.check import check_tensors
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes.target import Details
from pocketlm.runtimes.targets import get_target
from scratch import scratch_folder
from tiny import write_tokenizer

CONTEXT = 64
WINDOW = 8
_SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_UNKNOWN = {"gpt2": ("intermediate_size", "num_key_value_heads"), "gpt_neox": ("num_key_value_heads",)}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
    "short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)],
}  # fmt: skip
_GEMMA = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}

# name of a tiny model -> (model_type, what its configuration has that _SIZES has not)
MODELS = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": WINDOW, "head_dim": 32}),
    "phi3": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}),
    "phi4": (
        "phi3",
        {
            "rope_parameters": _LONGROPE | {
                "partial_rotary_factor": 0.75, "short_factor": _LONGROPE["short_factor"][:6],
                "long_factor": _LONGROPE["long_factor"][:6],
            },
            "original_max_position_embeddings": 32, "tie_word_embeddings": True,
        },
    ),
    "gemma2": (
        "gemma2",
        _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": (
        "gemma3_text",
        _GEMMA | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4,
            "attention_multiplier": 0.3, "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": False,
            "head_dim": 32, "mlp_only_layers": [0],
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt_neox sequential": ("gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
}  # fmt: skip


NAMES = (*MODELS, "openelm")


@cache
def family_folder(name):
    """The folder of a tiny model, which nobody may change."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if name == "openelm":
        return write_openelm(scratch_folder())
    kind, options = MODELS[name]
    unknown = _UNKNOWN.get(kind, ())
    sizes = {key: value for key, value in _SIZES.items() if key not in unknown}
    config = AutoConfig.for_model(kind, **(sizes | options))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    offset = 0.0 if kind.startswith("gemma") else 1.0
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            norm = ("norm" in key or "ln_" in key) and key.endswith("weight")
            value.copy_(offset + 0.1 * noise if norm else 0.15 * noise)
    folder = scratch_folder()
    model.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)
    return folder


@cache
def expected_logits(name, count=48):
    """What the family's own model computes for the tokens of ``token_ids``, float32 (count, vocabulary)."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor(token_ids(count))
    with torch.inference_mode():
        if name == "openelm":
            return openelm_logits(load_file(family_folder(name) / "model.safetensors"), tokens).numpy()
        model = AutoModelForCausalLM.from_pretrained(family_folder(name), dtype=torch.float32).eval()
        return model(tokens[None]).logits[0].numpy()


def token_ids(count=48):
    """The same tokens each time."""
    return np.random.default_rng(0).integers(3, 320, count).tolist()


@cache
def canonical(name, recipe="fp32", context=CONTEXT):
    """(config, canonical weights) of a tiny model."""
    checkpoint = open_checkpoint(str(family_folder(name)))
    config = parse_config(checkpoint.config, context)
    check_tensors(checkpoint, config)
    names = list(checkpoint.names())
    return config, dict(quantize_checkpoint(checkpoint, names, load_recipe(recipe), lambda error: None))


@cache
def artifact(name, target, recipe="fp32", context=CONTEXT):
    """The folder of a finished artifact, which nobody may change."""
    folder = scratch_folder()
    get_target(target).write(folder, *canonical(name, recipe, context), context, Details(1, (2,)))
    return folder
