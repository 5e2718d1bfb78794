"""Attention in a finished package: its parameters, its rotary tables, and how it handles the cache."""

from __future__ import annotations

import numpy as np

from ..export import apple
from ..export.config import Attention, ModelConfig
from ..export.decoder import attention_names, qk_norm_names
from ..export.rope import rotary_tables
from ..quantize.tensor import QuantizedTensor
from .mil_function import Step
from .mil_graph import Graph


def read_attention(graph: Graph, layer: int, attention: Attention) -> dict[str, float]:
    """Heads, scale, window and soft cap of a layer, named as ``export.inventory`` names them."""
    (query, key, _), _ = attention_names(layer)
    prefix = query.removesuffix(".q_proj.weight") + ":"
    by_row = attention.qk_norm is not None and not attention.qk_norm.per_head
    sources = qk_norm_names(layer) if by_row else (query, key)
    heads, kv_heads = (_heads(graph, name, "" if by_row else "_output") for name in sources)
    read = _widened(graph, graph.producers[f"layers_{layer}_{apple.KEY_CACHE}_read"])
    scale, softcap, mask = _read_scores(graph, read, prefix)
    return {
        prefix + "heads": heads,
        prefix + "kv_heads": kv_heads,
        prefix + "scale": scale,
        prefix + "window": _window(graph, mask, prefix),
        prefix + "softcap": softcap,
        prefix + "rotary tables": attention.rope is not None,  # or ``check_rotation`` has complained
    }


def _read_scores(graph: Graph, key: str, what: str) -> tuple[float, float, str]:
    """Scale, soft cap and mask of (q * scale) . k + mask, or of tanh((q * scale) . k / cap) * cap + mask."""
    scores = graph.user(key, "matmul", what)
    scale = float(graph.constant(graph.producer(scores, "x", "mul", what), "y", what))
    value, cap = scores.outputs[0], 0.0
    if graph.users(value, "real_div"):
        cap, value = read_soft_cap(graph, value, what)
    return scale, cap, str(graph.user(value, "add", what).inputs["y"])


def read_soft_cap(graph: Graph, scores: str, what: str) -> tuple[float, str]:
    """The cap of tanh(scores / cap) * cap, and the value that is."""
    divided = graph.user(scores, "real_div", what)
    bent = graph.user(divided.outputs[0], "tanh", what)
    widened = graph.user(bent.outputs[0], "mul", what)
    cap = float(graph.constant(widened, "y", what))
    if float(graph.constant(divided, "y", what)) != cap:
        raise graph.fail(f"{what} scores are divided by another soft cap than they are multiplied with")
    return cap, widened.outputs[0]


def _heads(graph: Graph, name: str, ending: str) -> int:
    """How many heads a projection, or its norm, is cut into."""
    output = apple.identifier(name.removesuffix(".weight")) + ending
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
    slots = graph.function.states[apple.KEY_CACHE][2]
    for (rope, head_dim), names in apple.rotary_names(config).items():
        for name, table in zip(names, rotary_tables(rope, head_dim, slots), strict=True):
            stored = graph.tensor(name, name).value
            if isinstance(stored, (QuantizedTensor, str)) or not np.array_equal(stored, table):
                raise graph.fail(f"{name} is not what the configuration asks for")
    for layer, features in enumerate(config.layers):
        _check_rotated(graph, config, layer, features.attention)


def _check_rotated(graph: Graph, config: ModelConfig, layer: int, attention: Attention) -> None:
    """The layer's keys are rotated by its own tables, or by none: walk back from the cache to the projection."""
    step = graph.producers.get(f"layers_{layer}_{apple.KEY_CACHE}_rows")
    used: set[str] = set()
    while step is not None and step.kind != "linear":
        if step.kind == "add":
            used |= _tables_behind(graph, step)
        step = graph.producers.get(str(step.inputs.get("update", step.inputs.get("x"))))
    names = apple.rotary_names(config)
    wanted = () if attention.rope is None else names[attention.rope, attention.head_dim]
    if used != set(wanted):
        found = ", ".join(sorted(used)) or "nothing"
        raise graph.fail(f"layer {layer}'s keys are rotated by {found} instead of {', '.join(wanted) or 'nothing'}")


def _tables_behind(graph: Graph, rotated: Step) -> set[str]:
    """The rotary tables that an addition's two products take: mul <- expand_dims <- concat <- ... <- gather."""
    tables, waiting = set(), [str(rotated.inputs[key]) for key in ("x", "y")]
    for _ in range(8):  # as many operations lie between, at most
        made = [graph.producers[value] for value in waiting if value in graph.producers]
        tables |= {str(step.inputs["x"]) for step in made if step.kind == "gather"}
        waiting = [value for step in made if step.kind != "gather" for value in _table_side(step)]
    return {name for name in tables if name.startswith("rotary_")}


def _table_side(step: Step) -> list[str]:
    """The inputs of an operation between a table and a rotation."""
    if step.kind == "mul":
        return [str(step.inputs["y"]), str(step.inputs["x"])] if step.name.startswith("mul") else []
    if step.kind == "concat":
        return [str(value) for value in step.inputs["values"]]
    return [str(step.inputs["x"])] if step.kind in ("expand_dims", "cast") else []


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
    value = None if first is None else first.value
    return value is not None and not isinstance(value, (QuantizedTensor, str)) and int(value[0]) == layer


def _check_source(graph: Graph, rows: Step, state: str, layer: int, what: str) -> None:
    """The rows written must come from the layer's own projection: walk back to the first linear."""
    (_, key, value), _ = attention_names(layer)
    weight = key if state == apple.KEY_CACHE else value
    step = graph.producers.get(str(rows.inputs["update"]))
    while step is not None and step.kind != "linear":
        step = graph.producers.get(str(step.inputs.get("x")))
    if step is None or step.inputs["weight"] != apple.identifier(weight):
        raise graph.fail(f"{what} is not filled from {weight}")
