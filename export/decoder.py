"""The decoder, written once. Every target and the reference are interpretations of this one function."""

from __future__ import annotations

from .config import EMBEDDING, ModelConfig
from .ops import Ops, T


def decoder(ops: Ops[T], config: ModelConfig, tokens: T) -> T:
    """Token ids (batch, tokens) -> logits (batch, wanted tokens, vocab_size).

    The sum of a block's output and the residual is taken together with the norm that follows it, because targets have
    that as one operation; the norm in front of the next block is therefore reached from the block before.
    """
    epsilon = config.rms_norm_eps
    residual = ops.embed(tokens, EMBEDDING)
    x = ops.rms_norm(residual, norm_name(config, 0), epsilon)
    for layer in range(config.num_hidden_layers):
        attend, out = attention_names(layer)
        x = ops.attention(ops.linear(x, attend), layer, config.attention)
        if layer == config.num_hidden_layers - 1:  # later steps look at one token at a time
            x, residual = ops.last_token(x), ops.last_token(residual)
        x, residual = ops.add_norm(ops.linear(x, out), residual, post_attention_norm_name(layer), epsilon)
        gate_up, down = mlp_names(layer)
        x = ops.linear(ops.gated(ops.linear(x, gate_up), config.hidden_act), down)
        x, residual = ops.add_norm(x, residual, norm_name(config, layer + 1), epsilon)
    return ops.linear(x, (config.head_name,))


def attention_names(layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights in front of the attention, and the one behind it."""
    prefix = f"model.layers.{layer}.self_attn."
    return tuple(f"{prefix}{part}_proj.weight" for part in "qkv"), (f"{prefix}o_proj.weight",)


def mlp_names(layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights in front of the gate, and the one behind it."""
    prefix = f"model.layers.{layer}.mlp."
    return (f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight"), (f"{prefix}down_proj.weight",)


def norm_name(config: ModelConfig, layer: int) -> str:
    """The norm in front of a layer's attention; behind the last layer, the final one."""
    last = layer == config.num_hidden_layers
    return "model.norm.weight" if last else f"model.layers.{layer}.input_layernorm.weight"


def post_attention_norm_name(layer: int) -> str:
    """The norm in front of a layer's MLP."""
    return f"model.layers.{layer}.post_attention_layernorm.weight"


def fused_name(names: tuple[str, ...]) -> str:
    """One name for weights that share an input: what their names have in common, then each one's own part.

    ``model.layers.0.mlp.gate_proj.weight`` and ``...up_proj.weight`` make ``model.layers.0.mlp.gate_proj+up_proj``.
    """
    parent, _, _ = names[0].removesuffix(".weight").rpartition(".")
    leaves = [name.removesuffix(".weight").rpartition(".")[2] for name in names]
    return f"{parent}.{'+'.join(leaves)}" if parent else leaves[0]
