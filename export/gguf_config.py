"""The metadata of a GGUF file turned back into the config.json that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .rope import Llama3Scaling, Rope, inverse_frequencies

# Keys under the architecture's name that are read below; _PINNED must have the value given, _HARMLESS says nothing.
_READ = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
        "rope.scale_linear",
    }
)  # fmt: skip
_PINNED: Mapping[str, Any] = {
    "expert_count": 0, "expert_used_count": 0, "rope.scaling.attn_factor": 1.0, "attention.causal": True,
    "attention.sliding_window": 0, "use_parallel_residual": False,
}  # fmt: skip
_HARMLESS = frozenset(
    {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
)

# Architectures of llama.cpp that are read -> Hugging Face's model_type and class.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}


def rebuild_config(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rope_factors: NDArray[np.float32] | None
) -> dict[str, Any]:
    """The config.json of a file of one of ARCHITECTURES.

    ``shapes`` are those of the tensors by their Hugging Face names; ``rope_factors`` is the tensor
    ``rope_freqs.weight``, (head_dim / 2,). Raises InputError for another architecture, a key that is missing or not
    known (it may change the computation), or a scaling that cannot be expressed.
    """
    _check_keys(fields)
    model_type, name = ARCHITECTURES[fields["general.architecture"]]
    heads = _whole(fields, "attention.head_count")
    hidden = _whole(fields, "embedding_length")
    head_dim = _whole(fields, "attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if _whole(fields, key, head_dim) != head_dim:
            raise InputError(
                f"GGUF: {_key(fields, key)} = {_get(fields, key)} must equal the size of a head, {head_dim}"
            )
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or len(embedding) != 2:
        raise InputError("GGUF: there is no token_embd.weight with two dimensions; convert the model again")
    config = {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": embedding[0],
        "hidden_size": hidden,
        "intermediate_size": _whole(fields, "feed_forward_length"),
        "num_hidden_layers": _whole(fields, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(fields, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _whole(fields, "context_length"),
        "rms_norm_eps": _real(fields, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(fields, head_dim, rope_factors),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in shapes,
    }
    for key in ("bos_token_id", "eos_token_id"):
        if isinstance(fields.get(f"tokenizer.ggml.{key}"), int):
            config[key] = fields[f"tokenizer.ggml.{key}"]
    return config


def _check_keys(fields: Mapping[str, Any]) -> None:
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"GGUF: architecture {architecture!r} is not supported; supported are: {', '.join(ARCHITECTURES)}"
        )
    prefix = f"{architecture}."
    given = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    unknown = sorted(set(given) - _READ - _HARMLESS - set(_PINNED))
    if unknown:
        raise InputError(
            f"GGUF: keys that pocketlm does not know and that may change the computation: "
            f"{', '.join(prefix + key for key in unknown)}"
        )
    for key, value in _PINNED.items():
        if given.get(key, value) != value:
            raise InputError(f"GGUF: {prefix}{key} = {given[key]!r} is not supported; it must be {value!r}")


def _key(fields: Mapping[str, Any], key: str) -> str:
    return f"{fields['general.architecture']}.{key}"


def _get(fields: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A value; of a list with one value per layer, that value if it is the same for all."""
    value = fields.get(_key(fields, key), default)
    if isinstance(value, list):
        if len(set(map(str, value))) != 1:
            raise InputError(
                f"GGUF: {_key(fields, key)} differs between layers ({value[:4]}...), which is not supported"
            )
        return value[0]
    return value


def _whole(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _get(fields, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(
            f"GGUF: {_key(fields, key)} must be a positive whole number, it is {value!r}; convert the model again"
        )
    return value


def _real(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = _get(fields, key, default)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise InputError(
            f"GGUF: {_key(fields, key)} must be a positive number, it is {value!r}; convert the model again"
        )
    # the file has float32: the shortest decimal that stands for it is what config.json had (1e-05, not 9.99999974e-06)
    return float(str(np.float32(value)))


def _rope_parameters(fields: Mapping[str, Any], head_dim: int, factors: NDArray[np.float32] | None) -> dict[str, Any]:
    theta = _real(fields, "rope.freq_base", 10000.0)
    kind = _get(fields, "rope.scaling.type", "linear")  # as llama.cpp reads a file without it
    linear = 1.0
    if kind == "linear":
        linear = _real(fields, "rope.scaling.factor", _real(fields, "rope.scale_linear", 1.0))
    elif kind != "none":
        raise InputError(f"GGUF: rope scaling {kind!r} is not supported; supported are: none, linear, llama3")
    if factors is not None and not np.all(factors == 1):
        if linear != 1:
            raise InputError("GGUF: linear rope scaling together with rope_freqs.weight is not supported")
        return {"rope_type": "llama3", "rope_theta": theta, **asdict(find_llama3_scaling(theta, head_dim, factors))}
    if linear != 1:
        return {"rope_type": "linear", "rope_theta": theta, "factor": linear}
    return {"rope_type": "default", "rope_theta": theta}


def find_llama3_scaling(theta: float, head_dim: int, factors: NDArray[np.float32]) -> Llama3Scaling:
    """The parameters of Llama 3.1's scaling from the factors (head_dim / 2,) that it divides frequencies by.

    Only the products of context and the two bounds can be seen in the factors, so the bounds are taken to be 1 and 4
    as in every published model, and the context a power of two. What is found reproduces the factors to float32
    rounding; raises InputError if nothing does.
    """
    if factors.shape != (head_dim // 2,):
        raise InputError(
            f"GGUF: rope_freqs.weight must have {head_dim // 2} values, its shape is {list(factors.shape)}"
        )
    plain = inverse_frequencies(Rope(theta), head_dim)
    contexts = [8192, *(2**power for power in range(5, 24))]
    # the slowest pair has the whole factor, unless its wavelength is not above the context: then one is tried
    for factor in (float(factors.max()), 2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
        for context in contexts:
            scaling = Llama3Scaling(factor, 1.0, 4.0, context)
            found = plain / inverse_frequencies(Rope(theta, llama3=scaling), head_dim)
            if np.allclose(found, factors, rtol=2e-6, atol=0):
                return scaling
    raise InputError("GGUF: rope_freqs.weight is not Llama 3.1's rope scaling, and no other with factors is supported")
