"""OpenELM as its paper and its published code have it (Mehta et al. 2024): transformers has no model of its own."""

import json

import torch
from safetensors.torch import save_file
from tiny import write_tokenizer
from torch.nn.functional import linear, silu

_DIM, _HEAD, _LAYERS, _VOCAB = 64, 16, 3, 320
_QUERIES, _KEYS = [2, 4, 6], [1, 2, 2]
_FFN = [0.5, 1.0, 2.5]

CONFIG = {
    "activation_fn_name": "swish", "architectures": ["OpenELMForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "auto_map": {"AutoConfig": "configuration_openelm.OpenELMConfig"}, "ffn_dim_divisor": 32,
    "ffn_multipliers": _FFN, "ffn_with_glu": True, "head_dim": _HEAD, "initializer_range": 0.02,
    "max_context_length": 128, "model_dim": _DIM, "model_type": "openelm", "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True, "num_gqa_groups": 4, "num_kv_heads": _KEYS, "num_query_heads": _QUERIES,
    "num_transformer_layers": _LAYERS, "qkv_multipliers": [0.5, 1.0], "rope_freq_constant": 10000,
    "rope_max_length": 256, "share_input_output_layers": True, "use_cache": True, "vocab_size": _VOCAB,
}  # fmt: skip


def write_openelm(folder):
    """A tiny model as Apple publishes it."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {"transformer.token_embeddings.weight": (_VOCAB, _DIM), "transformer.norm.weight": (_DIM,)}
    for layer in range(_LAYERS):
        width = int(max(32, int(_FFN[layer] * _DIM + 16) // 32 * 32))
        prefix = f"transformer.layers.{layer}."
        shapes |= {
            prefix + "attn.qkv_proj.weight": ((_QUERIES[layer] + 2 * _KEYS[layer]) * _HEAD, _DIM),
            prefix + "attn.out_proj.weight": (_DIM, _QUERIES[layer] * _HEAD),
            prefix + "attn.q_norm.weight": (_HEAD,), prefix + "attn.k_norm.weight": (_HEAD,),
            prefix + "attn_norm.weight": (_DIM,), prefix + "ffn_norm.weight": (_DIM,),
            prefix + "ffn.proj_1.weight": (2 * width, _DIM), prefix + "ffn.proj_2.weight": (_DIM, width),
        }  # fmt: skip
    state = {
        name: torch.randn(shape, generator=generator) * (0.1 if "norm" in name else 0.15) + ("norm" in name)
        for name, shape in shapes.items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, _VOCAB)
    return folder


def openelm_logits(state, tokens):
    """Logits (tokens, vocabulary) of token ids (tokens,)."""
    x = state["transformer.token_embeddings.weight"][tokens]
    for layer in range(_LAYERS):
        part = {
            name.removeprefix(f"transformer.layers.{layer}."): value
            for name, value in state.items()
            if name.startswith(f"transformer.layers.{layer}.")
        }
        x = x + _attention(part, _norm(x, part["attn_norm.weight"]), _QUERIES[layer], _KEYS[layer])
        first, second = linear(_norm(x, part["ffn_norm.weight"]), part["ffn.proj_1.weight"]).chunk(2, -1)
        x = x + linear(silu(first) * second, part["ffn.proj_2.weight"])
    return linear(_norm(x, state["transformer.norm.weight"]), state["transformer.token_embeddings.weight"])


def _norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _attention(part, x, queries, keys):
    count = len(x)
    qkv = linear(x, part["attn.qkv_proj.weight"]).view(count, queries + 2 * keys, _HEAD).transpose(0, 1)
    q, k, v = qkv.split([queries, keys, keys])
    q, k = _norm(q, part["attn.q_norm.weight"]), _norm(k, part["attn.k_norm.weight"])
    q, k = _rotated(q), _rotated(k)
    k, v = k.repeat_interleave(queries // keys, 0), v.repeat_interleave(queries // keys, 0)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return linear(mixed.transpose(0, 1).reshape(count, queries * _HEAD), part["attn.out_proj.weight"])


def _rotated(x):
    frequencies = 1.0 / 10000 ** (torch.arange(0, _HEAD, 2).float() / _HEAD)
    angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
    angles = torch.cat([angles, angles], -1)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
