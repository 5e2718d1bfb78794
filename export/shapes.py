"""The shape of every tensor that a decoder needs, from its configuration alone."""

from __future__ import annotations

from .config import EMBEDDING, ModelConfig
from .decoder import attention_names, mlp_names
from .inventory import take_inventory


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all weights but optional biases, in the order in which the decoder uses them."""
    hidden, attention = config.hidden_size, config.attention
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        (query, key, value), (out,) = attention_names(layer)
        (gate, up), (down,) = mlp_names(layer)
        shapes |= {
            query: (attention.query_width, hidden),
            key: (attention.kv_width, hidden),
            value: (attention.kv_width, hidden),
            out: (hidden, attention.query_width),
            gate: (config.intermediate_size, hidden),
            up: (config.intermediate_size, hidden),
            down: (hidden, config.intermediate_size),
        }
    return {name: shapes.get(name, (hidden,)) for name in take_inventory(config).weights}
