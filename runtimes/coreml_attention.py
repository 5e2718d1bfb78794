"""Attention in a finished package: its parameters, its rotary tables, and how it handles the cache."""

from __future__ import annotations

import numpy as np

from ..export import apple
from ..export.config import ModelConfig, rotary_tables
from ..export.decoder import attention_names
from ..quantize.tensor import QuantizedTensor
from .mil_graph import Graph
from .mil_package import Step


def read_attention(graph: Graph, layer: int) -> dict[str, float]:
    """Heads, scale, window and soft cap of a layer, named as ``export.inventory`` names them."""
    (query, key, _), _ = attention_names(layer)
    prefix = query.removesuffix(".q_proj.weight") + ":"
    heads, kv_heads = (_heads(graph, name) for name in (query, key))
    read = _widened(graph, graph.producers[f"layers_{layer}_{apple.KEY_CACHE}_read"])
    scale, softcap, mask = _read_scores(graph, read, prefix)
    return {
        prefix + "heads": heads,
        prefix + "kv_heads": kv_heads,
        prefix + "scale": scale,
        prefix + "window": _window(graph, mask, prefix),
        prefix + "softcap": softcap,
    }


def _read_scores(graph: Graph, key: str, what: str) -> tuple[float, float, str]:
    """Scale, soft cap and mask of (q * scale) . k + mask, or of tanh((q * scale) . k / cap) * cap + mask."""
    scores = graph.user(key, "matmul", what)
    scale = float(graph.constant(graph.producer(scores, "x", "mul", what), "y", what))
    bent, cap = scores, 0.0
    if graph.users(scores.outputs[0], "real_div"):
        divided = graph.user(scores.outputs[0], "real_div", what)
        bent = graph.user(graph.user(divided.outputs[0], "tanh", what).outputs[0], "mul", what)
        cap = float(graph.constant(bent, "y", what))
        if float(graph.constant(divided, "y", what)) != cap:
            raise graph.fail(f"{what} scores are divided by another soft cap than they are multiplied with")
    return scale, cap, str(graph.user(bent.outputs[0], "add", what).inputs["y"])


def _heads(graph: Graph, name: str) -> int:
    """How many heads a projection is cut into."""
    output = apple.identifier(name.removesuffix(".weight")) + "_output"
    after = graph.users(output, "add")
    reshaped = graph.user(after[0].outputs[0] if after else output, "reshape", name)
    shape = [int(size) for size in graph.constant(reshaped, "shape", name)]
    turned = bool(graph.users(reshaped.outputs[0], "transpose"))
    return shape[2 if turned else 1]


def _window(graph: Graph, mask: str, what: str) -> int:
    """How far back a token may look; -1 without a limit. The mask is followed back to its comparisons."""
    step: Step | None = graph.producers.get(mask)
    while step is not None and step.kind in ("tile", "expand_dims", "mul", "sub", "cast"):
        step = graph.producers.get(str(step.inputs["x"]))
    while step is not None and step.kind == "logical_and":
        limit = graph.producers[str(step.inputs["y"])]
        if limit.kind == "greater":
            return int(graph.constant(graph.producer(limit, "y", "sub", what), "y", what))
        step = graph.producers.get(str(step.inputs["x"]))
    if step is None or step.kind != "less_equal":
        raise graph.fail(f"{what} the mask is not causal")
    return -1


def check_rotation(graph: Graph, config: ModelConfig) -> None:
    """Raise InputError unless the rotary tables are those of the configuration."""
    attention, slots = config.attention, graph.function.states[apple.KEY_CACHE][2]
    tables = rotary_tables(attention.rope, attention.head_dim, slots)
    for name, table in zip(("rotary_cosines", "rotary_sines"), tables, strict=True):
        stored = graph.tensor(name, name).value
        if isinstance(stored, (QuantizedTensor, str)) or not np.array_equal(stored, table):
            raise graph.fail(f"{name} is not what the configuration asks for")


def check_cache(graph: Graph, config: ModelConfig) -> None:
    """Raise InputError unless every layer writes its rows of both caches, and then reads the same rows."""
    for state in (apple.KEY_CACHE, apple.VALUE_CACHE):
        if state not in graph.function.states:
            raise graph.fail(f"there is no state {state}")
        for layer in range(config.num_hidden_layers):
            _check_layer(graph, state, layer)


def _check_layer(graph: Graph, state: str, layer: int) -> None:
    what = f"layer {layer}'s {state}"
    name = f"layers_{layer}_{state}"
    rows = graph.producers.get(f"{name}_rows")
    if rows is None or rows.kind != "slice_update":
        raise graph.fail(f"{what} is not updated")
    writes = graph.users(rows.outputs[0], "coreml_update_state")
    if len(writes) != 1 or writes[0].inputs["state"] != state:
        raise graph.fail(f"{what} is not written back to the state")
    read = graph.producers.get(f"{name}_read")
    if read is None or str(read.inputs["x"]) != writes[0].outputs[0]:
        raise graph.fail(f"{what} is not read after it is written")
    begin = [int(part) for part in graph.constant(read, "begin", what)]
    if begin[0] != layer or not _is_layer(graph, rows, "begin", layer) or not _is_layer(graph, rows, "end", layer + 1):
        raise graph.fail(f"{what} is another layer's")
    _check_source(graph, rows, state, layer, what)
    _check_use(graph, _widened(graph, read), state, what)


def _check_use(graph: Graph, value: str, state: str, what: str) -> None:
    """What was read must be the keys, or the values, of one attention."""
    parameter = "key" if state == apple.KEY_CACHE else "value"
    product = graph.user(value, "matmul", what)
    turned = bool(graph.constant(product, "transpose_y", what))
    if product.inputs["y"] != value or turned != (parameter == "key"):
        raise graph.fail(f"{what} is not what the layer's attention takes as {parameter}")


def _widened(graph: Graph, read: Step) -> str:
    """The value that attention takes: what was read, cast to fp32 in a program that computes in it."""
    casts = graph.users(read.outputs[0], "cast")
    return casts[0].outputs[0] if casts else read.outputs[0]


def _is_layer(graph: Graph, rows: Step, key: str, layer: int) -> bool:
    """Whether the first number of a run-time position is this layer."""
    joined = graph.producer(rows, key, "concat", rows.name)
    first = graph.function.constants.get(joined.inputs["values"][0])
    return first is not None and not isinstance(first.value, (QuantizedTensor, str)) and int(first.value[0]) == layer


def _check_source(graph: Graph, rows: Step, state: str, layer: int, what: str) -> None:
    """The rows written must come from the layer's own projection: walk back to the first linear."""
    (_, key, value), _ = attention_names(layer)
    weight = key if state == apple.KEY_CACHE else value
    step = graph.producers.get(str(rows.inputs["update"]))
    while step is not None and step.kind != "linear":
        step = graph.producers.get(str(step.inputs.get("x")))
    if step is None or step.inputs["weight"] != apple.identifier(weight):
        raise graph.fail(f"{what} is not filled from {weight}")
