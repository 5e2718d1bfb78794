"""The one description of a decoder that everything else reads: features, not model names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .config_values import flag, index_list, number, optional_number, positive, whole_list
from .families import FAMILIES, HARMLESS_KEYS, UNSUPPORTED, Family
from .rope import Rope, parse_rope

EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
DEFAULT_CONTEXT = 2048  # tokens that a cache holds if nobody says otherwise; at 135M parameters they take 47 MB in fp16

# Names of an activation in config.json -> ours. gelu_tanh is the approximation of Hendrycks and Gimpel (2016).
ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_MOST_LAYERS = 1024
_MOST_EXPERTS = 1024


@dataclass(frozen=True)
class QkNorm:
    """An RMS norm of queries and of keys in front of their rotation; ``per_head``: of each head by itself."""

    per_head: bool
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """What one layer's attention computes. ``head_dim`` is the size of one head; ``scale`` multiplies q.k.

    rope    None: the layer knows no positions
    window  how many tokens each one sees, itself included; None: all before it
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None
    softcap: float | None = None
    qk_norm: QkNorm | None = None

    @property
    def query_width(self) -> int:
        """Columns of the packed (query, key, value) projection that hold the queries."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns that hold the keys; as many again hold the values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Experts:
    """A mixture: ``active`` of ``count`` MLPs for each token, chosen by the softmax of a router.

    renormalise  whether the weights of the chosen ones are made to sum to 1
    """

    count: int
    active: int
    renormalise: bool


@dataclass(frozen=True)
class Mlp:
    """down(activation(gate x) * (up x)), or down(activation(up x)) without a gate; ``width`` is that of one expert."""

    width: int
    activation: str
    gated: bool = True
    experts: Experts | None = None


@dataclass(frozen=True)
class Layer:
    """What one layer computes; layers of a model may differ."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True)
class Norms:
    """The norms of a model's blocks: which kind (rms or layer), and where."""

    kind: str
    epsilon: float
    before: bool = True
    after: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, in Hugging Face's terms.

    parallel           attention and MLP of a layer see the same input
    learned_positions  a table of positions is added to the embedding
    embedding_scale, residual_scale, logits_scale  multiply the embedding, each block's output, and the logits
    logits_softcap     bends the logits: tanh(logits / cap) * cap
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    layers: tuple[Layer, ...]
    norms: Norms
    parallel: bool = False
    learned_positions: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    logits_softcap: float | None = None

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder."""
        return len(self.layers)

    @property
    def head_name(self) -> str:
        """Name of the tensor that turns hidden states into logits."""
        return EMBEDDING if self.tie_word_embeddings else "lm_head.weight"


def parse_config(raw: Mapping[str, Any], context: int | None = None) -> ModelConfig:
    """Read the content of a config.json.

    ``context`` is how many tokens an artifact's cache will hold; None is the model's own limit. A window that is not
    smaller is none, and LongRoPE has other frequencies for a long context.

    Raises InputError for a family that is not supported, a value that is missing or out of range, and for any key
    that is not known: it may change the computation.
    """
    family = find_family(raw)
    _check_keys(raw, family)
    values = dict(family.defaults) | {family.renames.get(key, key): value for key, value in raw.items()}
    for key, name in family.renames.items():  # a key by its own name counts more than one by Llama's
        if raw.get(key) is not None:
            values[name] = raw[key]
    limit = positive(values, "max_position_embeddings")
    context = limit if context is None else context
    count = positive(values, "num_hidden_layers", _MOST_LAYERS)
    hidden = positive(values, "hidden_size")
    return ModelConfig(
        model_type=str(raw["model_type"]),
        vocab_size=positive(values, "vocab_size"),
        hidden_size=hidden,
        tie_word_embeddings=flag(values, "tie_word_embeddings", family.tied_by_default),
        max_position_embeddings=limit,
        layers=tuple(map(Layer, _attentions(values, family, count, context), _mlps(values, family, count))),
        norms=Norms(family.norm, number(values, "rms_norm_eps", 1e-6), family.norm_before, family.norm_after),
        parallel=flag(values, "parallel_residual", False),
        learned_positions=family.positions == "learned",
        embedding_scale=hidden**0.5 if values.get("scale_embedding") else number(values, "embedding_multiplier", 1.0),
        residual_scale=number(values, "residual_multiplier", 1.0),
        logits_scale=1 / number(values, "logits_scaling", 1.0),
        logits_softcap=optional_number(values, "final_logit_softcapping"),
    )


def find_family(raw: Mapping[str, Any]) -> Family:
    """The row of a config.json's model_type; raises InputError if there is none, with the reason if it is known."""
    name = str(raw.get("model_type"))
    family = FAMILIES.get(name)
    if family is not None:
        return family
    reason = UNSUPPORTED.get(name)
    if reason is None and raw.get("is_encoder_decoder"):
        reason = UNSUPPORTED["t5"]
    if reason is None and any(key in raw for key in ("vision_config", "audio_config")):
        reason = UNSUPPORTED["llava"]
    raise InputError(
        f"model_type {raw.get('model_type')!r} is not supported{': ' + reason if reason else ''}; "
        f"supported are: {', '.join(sorted(FAMILIES))}"
    )


def _check_keys(raw: Mapping[str, Any], family: Family) -> None:
    ignored = {"auto_map"} if family.own_code else set()
    unknown = sorted(set(raw) - family.keys - set(family.required_values) - HARMLESS_KEYS - ignored)
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


def _attentions(values: Mapping[str, Any], family: Family, count: int, context: int) -> list[Attention]:
    """One for each layer."""
    all_heads = whole_list(values, "num_attention_heads", count)
    given = values.get("num_key_value_heads") is not None
    all_kv_heads = whole_list(values, "num_key_value_heads", count) if given else all_heads
    head_dim = positive(values, "head_dim") if values.get("head_dim") is not None else _usual_head_dim(values)
    scale = _attention_scale(values, head_dim)
    epsilon = number(values, "rms_norm_eps", 1e-6)
    qk_norm = None if family.qk_norm is None else QkNorm(family.qk_norm == "head", epsilon)
    softcap = optional_number(values, "attn_logit_softcapping")
    kinds, windows = _windows(values, family, count, context)
    rotating = _rotating(values, family, count)
    ropes = {kind: _rope(values, head_dim, context, kind) for kind in set(kinds)} if any(rotating) else {}
    attentions = []
    for heads, kv_heads, kind, window, rotates in zip(all_heads, all_kv_heads, kinds, windows, rotating, strict=True):
        if heads % kv_heads:
            raise InputError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
        rope = ropes[kind] if rotates else None
        attentions.append(Attention(heads, kv_heads, head_dim, scale, rope, window, softcap, qk_norm))
    return attentions


def _usual_head_dim(values: Mapping[str, Any]) -> int:
    hidden, heads = positive(values, "hidden_size"), positive(values, "num_attention_heads")
    if hidden < heads:
        raise InputError(f"config.json: {heads} attention heads cannot share a hidden size of {hidden}")
    return hidden // heads


def _attention_scale(values: Mapping[str, Any], head_dim: int) -> float:
    if head_dim % 2:
        raise InputError(f"config.json: head_dim {head_dim} is odd, rotary embedding needs pairs")
    if "attention_multiplier" in values:
        return number(values, "attention_multiplier", 1.0)
    return float(number(values, "query_pre_attn_scalar", head_dim) ** -0.5)


def _windows(values: Mapping[str, Any], family: Family, count: int, context: int) -> tuple[list[str], list[int | None]]:
    """The kind of each layer (an entry of ``layer_types``), and its window."""
    size = None if values.get("sliding_window") is None else positive(values, "sliding_window")
    if values.get("use_sliding_window", True) is False:
        size = None
    kinds = values.get("layer_types")
    if kinds is None:
        kinds = [_usual_kind(values, family, layer) if size else "full_attention" for layer in range(count)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in known for kind in kinds):
        raise InputError(
            f"config.json: layer_types must say full_attention or sliding_attention for each of {count} layers"
        )
    if "sliding_attention" in kinds and size is None:
        raise InputError("config.json: layer_types has sliding_attention, but there is no sliding_window")
    acts = size is not None and size < context
    return kinds, [size if acts and kind == "sliding_attention" else None for kind in kinds]


def _usual_kind(values: Mapping[str, Any], family: Family, layer: int) -> str:
    """What older files leave to the family."""
    given = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern")
    pattern = (
        family.window_pattern
        if given is None
        else positive({"sliding_window_pattern": given}, "sliding_window_pattern")
    )
    first = values.get("max_window_layers", 0)
    if type(first) is not int:
        raise InputError(f"config.json: max_window_layers must be a whole number, it is {first!r}")
    slides = (layer + 1) % pattern != 0 if pattern else layer >= first
    return "sliding_attention" if slides else "full_attention"


def _rotating(values: Mapping[str, Any], family: Family, count: int) -> list[bool]:
    """Which layers have rotary positions."""
    if family.positions != "rope":
        return [False] * count
    listed = values.get("no_rope_layers")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != count:
            raise InputError(f"config.json: no_rope_layers must have an entry for each of {count} layers")
        return [bool(entry) for entry in listed]
    if values.get("no_rope_layer_interval") is None:
        return [True] * count
    interval = positive(values, "no_rope_layer_interval")
    return [(layer + 1) % interval != 0 for layer in range(count)]


def _rope(values: Mapping[str, Any], head_dim: int, context: int, kind: str) -> Rope:
    """Older files of models with two rotations give the one of windows a base of its own, and no scaling."""
    local = values.get("rope_local_base_freq")
    if local is not None and kind == "sliding_attention" and not _has_kinds(values):
        return parse_rope({"rope_theta": local}, head_dim, context)
    return parse_rope(values, head_dim, context, kind)


def _has_kinds(values: Mapping[str, Any]) -> bool:
    given = values.get("rope_parameters")
    return isinstance(given, Mapping) and any(isinstance(value, Mapping) for value in given.values())


def _mlps(values: Mapping[str, Any], family: Family, count: int) -> list[Mlp]:
    """One for each layer."""
    name = str(values.get("hidden_act", "silu"))
    if name not in ACTIVATIONS:
        raise InputError(f"config.json: activation {name!r} is not supported; supported are: {', '.join(ACTIVATIONS)}")
    dense = [Mlp(width, ACTIVATIONS[name], family.gated) for width in _mlp_widths(values, count)]
    if "num_local_experts" not in values:
        return dense
    experts = Experts(
        positive(values, "num_local_experts", _MOST_EXPERTS),
        positive(values, "num_experts_per_tok"),
        flag(values, "norm_topk_prob", False),
    )
    if experts.active > experts.count:
        raise InputError(f"config.json: {experts.active} of {experts.count} experts cannot be active")
    width = positive(values, "moe_intermediate_size" if "moe_intermediate_size" in values else "intermediate_size")
    mixed = Mlp(width, ACTIVATIONS[name], family.gated, experts)
    step = positive({"decoder_sparse_step": 1} | dict(values), "decoder_sparse_step")
    only = index_list(values, "mlp_only_layers")
    return [mixed if (layer + 1) % step == 0 and layer not in only else mlp for layer, mlp in enumerate(dense)]


def _mlp_widths(values: Mapping[str, Any], count: int) -> list[int]:
    """The width of each layer's MLP: given, or in proportion to the hidden size."""
    if values.get("intermediate_size") is not None or "ffn_multipliers" not in values:
        return [positive(values, "intermediate_size")] * count
    multipliers = values["ffn_multipliers"]
    multipliers = multipliers if isinstance(multipliers, list) else [multipliers] * count
    if len(multipliers) != count:
        raise InputError(f"config.json: ffn_multipliers has {len(multipliers)} entries for {count} layers")
    hidden, divisor = positive(values, "hidden_size"), positive(values, "ffn_dim_divisor")
    return [_rounded(hidden * number({"ffn_multipliers": m}, "ffn_multipliers", 1.0), divisor) for m in multipliers]


def _rounded(width: float, divisor: int) -> int:
    """To a multiple of the divisor, but not down by more than a tenth (MobileNet's rule, which OpenELM has)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded
