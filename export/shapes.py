"""The shape of every tensor that a decoder needs, from its configuration alone."""

from __future__ import annotations

from .config import EMBEDDING, POSITIONS, Attention, Mlp, ModelConfig
from .decoder import attention_names, expert_names, mlp_names, qk_norm_names, router_name
from .inventory import take_inventory

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Name -> shape of all weights but optional biases, in the order in which the decoder uses them."""
    shapes = linear_shapes(config) | {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        "lm_head.weight": (config.vocab_size, config.hidden_size),
        POSITIONS: (config.max_position_embeddings, config.hidden_size),
    }
    for layer, features in enumerate(config.layers):
        shapes |= _qk_norm_shapes(layer, features.attention)
    return {name: shapes.get(name, (config.hidden_size,)) for name in take_inventory(config).weights}


def linear_shapes(config: ModelConfig) -> Shapes:
    """Name -> shape of the matrices of all layers; each may have a bias."""
    shapes: Shapes = {}
    for layer, features in enumerate(config.layers):
        shapes |= _attention_shapes(layer, features.attention, config.hidden_size)
        shapes |= _mlp_shapes(layer, features.mlp, config.hidden_size)
    return shapes


def _attention_shapes(layer: int, attention: Attention, hidden: int) -> Shapes:
    (query, key, value), (out,) = attention_names(layer)
    return {
        query: (attention.query_width, hidden),
        key: (attention.kv_width, hidden),
        value: (attention.kv_width, hidden),
        out: (hidden, attention.query_width),
    }


def _qk_norm_shapes(layer: int, attention: Attention) -> Shapes:
    if attention.qk_norm is None:
        return {}
    query, key = qk_norm_names(layer)
    if attention.qk_norm.per_head:
        return dict.fromkeys((query, key), (attention.head_dim,))
    return {query: (attention.query_width,), key: (attention.kv_width,)}


def _mlp_shapes(layer: int, mlp: Mlp, hidden: int) -> Shapes:
    if mlp.experts is None:
        return _one_mlp(*mlp_names(layer, mlp), mlp.width, hidden)
    shapes: Shapes = {router_name(layer): (mlp.experts.count, hidden)}
    for expert in range(mlp.experts.count):
        shapes |= _one_mlp(*expert_names(layer, expert, mlp), mlp.width, hidden)
    return shapes


def _one_mlp(first: tuple[str, ...], last: tuple[str, ...], width: int, hidden: int) -> Shapes:
    shapes: Shapes = dict.fromkeys(first, (width, hidden))
    return shapes | dict.fromkeys(last, (hidden, width))
