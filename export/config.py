"""The one description of a decoder that everything else reads: features, not model names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .families import FAMILIES, HARMLESS_KEYS


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling (transformers' ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and how frequencies are stretched for long contexts."""

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


@dataclass(frozen=True)
class Attention:
    """What one layer's attention computes. ``head_dim`` is the size of one head; ``scale`` multiplies q.k."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope
    window: int | None = None
    softcap: float | None = None

    @property
    def query_width(self) -> int:
        """Columns of the packed (query, key, value) projection that hold the queries."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns that hold the keys; as many again hold the values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, in Hugging Face's terms."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention: Attention

    @property
    def head_name(self) -> str:
        """Name of the tensor that turns hidden states into logits."""
        return EMBEDDING if self.tie_word_embeddings else "lm_head.weight"


EMBEDDING = "model.embed_tokens.weight"


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read the content of a config.json.

    Raises InputError for a family that is not supported, a value that is missing or out of range, and for any key
    that is not known: it may change the computation.
    """
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise InputError(
            f"model_type {raw.get('model_type')!r} is not supported; supported are: {', '.join(sorted(FAMILIES))}"
        )
    unknown = sorted(set(raw) - family.keys - HARMLESS_KEYS)
    if unknown:
        raise InputError(
            f"config.json has keys that pocketlm does not know and that may change the computation: "
            f"{', '.join(unknown)}; remove them if they are only notes"
        )
    for key, allowed in family.required_values.items():
        if key in raw and raw[key] not in allowed:
            raise InputError(
                f"config.json: {key} = {raw[key]!r} is not supported; it must be {' or '.join(map(repr, allowed))}"
            )
    hidden = _positive(raw, "hidden_size")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = heads if raw.get("num_key_value_heads") is None else _positive(raw, "num_key_value_heads")
    head_dim = hidden // heads if raw.get("head_dim") is None else _positive(raw, "head_dim")
    if heads % kv_heads:
        raise InputError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
    if head_dim % 2:
        raise InputError(f"config.json: head_dim {head_dim} is odd, rotary embedding needs pairs")
    return ModelConfig(
        model_type=str(raw["model_type"]),
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_hidden_layers=_positive(raw, "num_hidden_layers"),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        hidden_act=str(raw.get("hidden_act", "silu")),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", family.tied_by_default)),
        max_position_embeddings=_positive(raw, "max_position_embeddings"),
        attention=Attention(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5, rope=_parse_rope(raw)
        ),
    )


def _positive(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(f"config.json: {key} must be a positive whole number, it is {value!r}")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"config.json: {key} must be a positive number, it is {value!r}")
    return float(value)


def _parse_rope(raw: Mapping[str, Any]) -> Rope:
    """transformers 5 writes ``rope_parameters``; older files have ``rope_theta`` and ``rope_scaling``."""
    parameters: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"config.json: {key} must be an object, it is {given!r}")
        parameters |= given or {}
    parameters.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
    theta = _number(parameters, "rope_theta", 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, linear_factor=_number(parameters, "factor", 1.0))
    if kind == "llama3":
        return Rope(
            theta,
            llama3=Llama3Scaling(
                factor=_number(parameters, "factor", 8.0),
                low_freq_factor=_number(parameters, "low_freq_factor", 1.0),
                high_freq_factor=_number(parameters, "high_freq_factor", 4.0),
                original_max_position_embeddings=_positive(parameters, "original_max_position_embeddings"),
            ),
        )
    raise InputError(f"config.json: rope type {kind!r} is not supported; supported are: default, linear, llama3")


def inverse_frequencies(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    """Rotation per position of each pair of head columns, radians, float32 (head_dim / 2,).

    Computed in float32 as transformers does (RoFormer, Su et al. 2021; ``_compute_llama3_parameters`` there).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    frequencies = (frequencies / np.float32(rope.linear_factor)).astype(np.float32)
    return frequencies if rope.llama3 is None else _llama3_frequencies(frequencies, rope.llama3)


def _llama3_frequencies(frequencies: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Slow rotations are divided by ``factor``, fast ones kept, those between interpolated."""
    wavelengths = 2 * np.pi / frequencies
    context = scaling.original_max_position_embeddings
    smooth = (context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    slow = wavelengths > context / scaling.low_freq_factor
    fast = wavelengths < context / scaling.high_freq_factor
    result: NDArray[np.float32] = np.where(
        slow, frequencies / scaling.factor, np.where(fast, frequencies, between)
    ).astype(np.float32)
    return result


def rotary_tables(rope: Rope, head_dim: int, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines for positions 0 .. context - 1, each float32 (context, head_dim / 2)."""
    angles = np.arange(context, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)[None]
    return np.cos(angles), np.sin(angles)
