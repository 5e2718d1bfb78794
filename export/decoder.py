"""The decoder, written once. Every target and the reference are interpretations of this one function."""

from __future__ import annotations

from .config import EMBEDDING, POSITIONS, Layer, Mlp, ModelConfig
from .ops import Ops, T


def decoder(ops: Ops[T], config: ModelConfig, tokens: T) -> T:
    """Token ids (batch, tokens) -> logits (batch, wanted tokens, vocab_size).

    The sum of a block's output and the residual is taken together with the norm that follows it, because targets have
    that as one operation; the norm in front of the next block is therefore reached from the block before.
    """
    residual = _embedded(ops, config, tokens)
    x = _norm(ops, config, residual, norm_name(config, 0)) if config.norms.before else residual
    block = _parallel if config.parallel else _sequential
    for index, layer in enumerate(config.layers):
        x, residual = block(ops, config, index, layer, x, residual)
    logits = _scaled(ops, ops.linear(x, (config.head_name,)), config.logits_scale, "logits")
    return logits if config.logits_softcap is None else ops.soft_cap(logits, config.logits_softcap, "logits")


def _embedded(ops: Ops[T], config: ModelConfig, tokens: T) -> T:
    x = _scaled(ops, ops.embed(tokens, EMBEDDING), config.embedding_scale, "embedding")
    return ops.add_positions(x, POSITIONS) if config.learned_positions else x


def _sequential(ops: Ops[T], config: ModelConfig, index: int, layer: Layer, x: T, residual: T) -> tuple[T, T]:
    """Attention, then the MLP on what it gave. Takes and gives (normed, not normed)."""
    x = _attend(ops, index, layer, x)
    if index == len(config.layers) - 1:  # later steps look at one token at a time
        x, residual = ops.last_token(x), ops.last_token(residual)
    x = _block_output(ops, config, ops.linear(x, attention_names(index)[1]), index, "attention")
    before_mlp = mlp_norm_name(config, index) if config.norms.before else None
    x, residual = _add(ops, config, x, residual, before_mlp, f"model.layers.{index}.attention")
    x = _block_output(ops, config, _mlp(ops, index, layer.mlp, x), index, "mlp")
    return _add(ops, config, x, residual, _next_norm(config, index), f"model.layers.{index}.mlp")


def _parallel(ops: Ops[T], config: ModelConfig, index: int, layer: Layer, x: T, residual: T) -> tuple[T, T]:
    """Attention and MLP of the same input, each behind a norm of its own."""
    x = _attend(ops, index, layer, x)
    if index == len(config.layers) - 1:
        x, residual = ops.last_token(x), ops.last_token(residual)
    attended = ops.linear(x, attention_names(index)[1])
    normed = _norm(ops, config, residual, mlp_norm_name(config, index))
    x = ops.add(attended, _mlp(ops, index, layer.mlp, normed), f"model.layers.{index}.blocks")
    return _add(ops, config, x, residual, _next_norm(config, index), f"model.layers.{index}")


def _attend(ops: Ops[T], index: int, layer: Layer, x: T) -> T:
    return ops.attention(ops.linear(x, attention_names(index)[0]), index, layer.attention)


def _mlp(ops: Ops[T], index: int, mlp: Mlp, x: T) -> T:
    if mlp.experts is not None:
        return ops.experts(x, index, mlp)
    first, last = mlp_names(index, mlp)
    return mlp_output(ops, x, mlp, first, last)


def mlp_output(ops: Ops[T], x: T, mlp: Mlp, first: tuple[str, ...], last: tuple[str, ...]) -> T:
    """An MLP with these weights in front of the activation and behind it."""
    inner = ops.linear(x, first)
    inner = ops.gated(inner, mlp.activation) if mlp.gated else ops.activate(inner, mlp.activation)
    return ops.linear(inner, last)


def every_expert(ops: Ops[T], x: T, layer: int, mlp: Mlp) -> T:
    """A mixture by computing all experts and weighing each one's output; most weights are 0.

    For targets whose weights cannot be chosen at run time.
    """
    assert mlp.experts is not None
    weights = ops.route(ops.linear(x, (router_name(layer),)), layer, mlp.experts)

    def weighed(expert: int) -> T:
        return ops.weigh(mlp_output(ops, x, mlp, *expert_names(layer, expert, mlp)), weights, layer, expert)

    total = weighed(0)
    for expert in range(1, mlp.experts.count):
        total = ops.add(total, weighed(expert), f"model.layers.{layer}.mlp.experts.{expert}.sum")
    return total


def _norm(ops: Ops[T], config: ModelConfig, x: T, name: str) -> T:
    norm = ops.rms_norm if config.norms.kind == "rms" else ops.layer_norm
    return norm(x, name, config.norms.epsilon)


def _block_output(ops: Ops[T], config: ModelConfig, x: T, index: int, block: str) -> T:
    if config.norms.after:
        x = _norm(ops, config, x, output_norm_name(index, block))
    return _scaled(ops, x, config.residual_scale, f"model.layers.{index}.{block}")


def _scaled(ops: Ops[T], x: T, factor: float, name: str) -> T:
    return x if factor == 1 else ops.scale(x, factor, name)


def _add(ops: Ops[T], config: ModelConfig, x: T, residual: T, norm: str | None, where: str) -> tuple[T, T]:
    """(the norm of the sum, the sum); the sum twice without a norm."""
    if norm is not None and config.norms.kind == "rms":
        return ops.add_norm(x, residual, norm, config.norms.epsilon)
    total = ops.add(x, residual, f"{where}.sum")
    return (total if norm is None else ops.layer_norm(total, norm, config.norms.epsilon)), total


def _next_norm(config: ModelConfig, index: int) -> str | None:
    """Behind a layer: the norm in front of the next one, or the final one, which every model has."""
    last = index == len(config.layers) - 1
    return norm_name(config, index + 1) if config.norms.before or last else None


def attention_names(layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights in front of the attention, and the one behind it."""
    prefix = f"model.layers.{layer}.self_attn."
    return tuple(f"{prefix}{part}_proj.weight" for part in "qkv"), (f"{prefix}o_proj.weight",)


def qk_norm_names(layer: int) -> tuple[str, str]:
    """The norms of queries and keys."""
    prefix = f"model.layers.{layer}.self_attn."
    return f"{prefix}q_norm.weight", f"{prefix}k_norm.weight"


def mlp_names(layer: int, mlp: Mlp) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights in front of the activation, and the one behind it."""
    return _mlp_names(f"model.layers.{layer}.mlp.", mlp)


def router_name(layer: int) -> str:
    """The weight that chooses experts."""
    return f"model.layers.{layer}.mlp.gate.weight"


def expert_names(layer: int, expert: int, mlp: Mlp) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As ``mlp_names``, of one expert."""
    return _mlp_names(f"model.layers.{layer}.mlp.experts.{expert}.", mlp)


def _mlp_names(prefix: str, mlp: Mlp) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first = ("gate_proj", "up_proj") if mlp.gated else ("up_proj",)
    return tuple(f"{prefix}{part}.weight" for part in first), (f"{prefix}down_proj.weight",)


def norm_name(config: ModelConfig, layer: int) -> str:
    """The norm in front of a layer's attention; behind the last layer, the final one."""
    last = layer == config.num_hidden_layers
    return "model.norm.weight" if last else f"model.layers.{layer}.input_layernorm.weight"


def mlp_norm_name(config: ModelConfig, layer: int) -> str:
    """The norm in front of a layer's MLP. Llama calls it after what it is behind; with norms there, it cannot be."""
    name = "pre_feedforward_layernorm" if config.norms.after else "post_attention_layernorm"
    return f"model.layers.{layer}.{name}.weight"


def output_norm_name(layer: int, block: str) -> str:
    """The norm of the output of attention or mlp."""
    name = "post_attention_layernorm" if block == "attention" else "post_feedforward_layernorm"
    return f"model.layers.{layer}.{name}.weight"


def fused_name(names: tuple[str, ...]) -> str:
    """One name for weights that share an input: what their names have in common, then each one's own part.

    ``model.layers.0.mlp.gate_proj.weight`` and ``...up_proj.weight`` make ``model.layers.0.mlp.gate_proj+up_proj``.
    """
    parent, _, _ = names[0].removesuffix(".weight").rpartition(".")
    leaves = [name.removesuffix(".weight").rpartition(".")[2] for name in names]
    return f"{parent}.{'+'.join(leaves)}" if parent else leaves[0]
