"""Reading weights, constants and the handling of the cache back out of a finished package, function by function.

Everything is found by following operations to what they use, in every function: two functions of one package are two
graphs, and either could be wrong alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..export import apple
from ..export.config import EMBEDDING, POSITIONS, ModelConfig
from ..export.decoder import expert_names, mlp_names
from ..export.inventory import take_inventory
from ..quantize.store import CanonicalTensor
from ..quantize.tensor import QuantizedTensor
from .coreml_attention import check_cache, check_rotation, read_attention, read_soft_cap
from .coreml_session import PACKAGE
from .mil_constants import Constant
from .mil_function import Step
from .mil_graph import Graph
from .mil_package import MilPackage
from .mil_types import check_types
from .target import ReadBack


def read_back(folder: Path, config: ModelConfig) -> ReadBack:
    """Weights and constants of ``folder``/model.mlpackage.

    Raises InputError, naming the function and the layer, if a function does not use a weight it should, differs from
    another function in a constant, or reads or writes the cache of the wrong layer or not at all.
    """
    package = MilPackage(folder / PACKAGE)
    graphs = [Graph(package.path, package.function(name)) for name in package.function_names]
    for name in package.function_names:
        check_types(package, name)
    weights = PackageWeights(graphs, config)
    constants: dict[str, float] = {}
    for graph in graphs:
        check_cache(graph, config)
        check_rotation(graph, config)
        check_activations(graph, config)
        for name, value in read_constants(graph, config).items():
            if constants.setdefault(name, value) != value:
                raise InputError(
                    f"{package.path}: {name} is {value} in {graph.function.name}, and {constants[name]} elsewhere"
                )
    return ReadBack(weights, constants)


class PackageWeights:
    """The canonical weights of a package, found as inputs of the operations that use them."""

    def __init__(self, graphs: list[Graph], config: ModelConfig) -> None:
        """Find every weight in every function; raises InputError if functions do not share one."""
        self._tensors: dict[str, Constant] = {}
        for graph in graphs:
            for name, constant in _find_weights(graph, config).items():
                first = self._tensors.setdefault(name, constant)
                if first.key != constant.key:
                    raise graph.fail(f"{name} is another constant than in {graphs[0].function.name}")

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> CanonicalTensor:
        value = self._tensors[name].value
        assert not isinstance(value, str)
        return value


def _find_weights(graph: Graph, config: ModelConfig) -> dict[str, Constant]:
    inventory = take_inventory(config)
    found: dict[str, Constant] = {}
    for name in inventory.weights:
        value = apple.identifier(name)
        found[name] = graph.tensor(value, name)
        kinds = {step.kind for kind in ("linear", "mul", "gather", "add") for step in graph.users(value, kind)}
        linear = any(name in names for names in inventory.linears)
        wanted = ({"linear"} if linear else set()) | ({"gather"} if name in (EMBEDDING, POSITIONS) else set())
        wanted |= {"add"} if name.endswith("norm.bias") else set()
        if kinds != (wanted or {"mul"}):
            raise graph.fail(f"{name} is used by {', '.join(sorted(kinds)) or 'nothing'}")
        if linear:
            found |= _find_bias(graph, name, graph.user(value, "linear", name))
    return found


def _find_bias(graph: Graph, name: str, linear: Step) -> dict[str, Constant]:
    """A linear's bias under its checkpoint name, unless it is the zeros of a linear without one."""
    bias = name.removesuffix("weight") + "bias"
    constant = graph.tensor(str(linear.inputs["bias"]), bias)
    if str(linear.inputs["bias"]) == apple.identifier(bias):
        return {bias: constant}
    value = constant.value
    if isinstance(value, QuantizedTensor) or np.any(value):
        raise graph.fail(f"{name} has a bias that it should not have")
    added = graph.function.constants.get(apple.identifier(bias))  # behind a float32 linear it is an operation
    return {} if added is None else {bias: added}


def read_constants(graph: Graph, config: ModelConfig) -> dict[str, float]:
    """Epsilons and attention parameters, named as ``export.inventory`` names them."""
    inventory = take_inventory(config)
    found = {
        f"{name}:epsilon": _read_epsilon(graph, name)
        for name in inventory.weights
        if f"{name}:epsilon" in inventory.constants
    }
    for layer, features in enumerate(config.layers):
        found |= read_attention(graph, layer, features.attention)
        if features.mlp.experts is not None:
            found |= _read_router(graph, layer)
    for name in inventory.constants:
        owner, _, what = name.rpartition(":")
        if name not in found and what == "scale":
            found[name] = float(graph.constant(_made(graph, owner, "scaled"), "y", owner))
        elif name not in found and what == "softcap":
            divided = graph.producer(
                graph.producer(_made(graph, owner, "capped"), "x", "tanh", owner), "x", "real_div", owner
            )
            found[name] = read_soft_cap(graph, str(divided.inputs["x"]), owner)[0]
    return found


def _made(graph: Graph, owner: str, how: str) -> Step:
    """The multiplication that scales or caps something; the last operation of a program is called after its output."""
    names = [f"{apple.identifier(owner)}_{how}"] + ([apple.LOGITS] if owner == "logits" else [])
    made = next((graph.producers[name] for name in names if name in graph.producers), None)
    if made is None or made.kind != "mul":
        raise graph.fail(f"{owner} is not {how}")
    return made


def _read_router(graph: Graph, layer: int) -> dict[str, float]:
    """How many experts a token goes to, and whether their weights are made to sum to 1."""
    what, name = f"model.layers.{layer}.mlp", f"model_layers_{layer}_mlp"
    spread = graph.producers.get(f"{name}_weights")
    if spread is None or spread.kind != "scatter_along_axis":
        raise graph.fail(f"{what} has no weights of experts")
    shares = graph.producers[str(spread.inputs["updates"])]
    chosen = graph.producer(shares, "x", "topk", what) if shares.kind == "real_div" else shares
    if chosen.kind != "topk" or str(spread.inputs["indices"]) != chosen.outputs[1]:
        raise graph.fail(f"{what} does not put the weights of the chosen experts where they belong")
    return {
        f"{what}:active experts": float(graph.constant(chosen, "k", what)),
        f"{what}:renormalise": shares.kind == "real_div",
    }


def check_activations(graph: Graph, config: ModelConfig) -> None:
    """Raise InputError unless each MLP bends its values as the configuration says: the kinds differ by little."""
    for layer, features in enumerate(config.layers):
        mlp = features.mlp
        count = 0 if mlp.experts is None else mlp.experts.count
        groups = [expert_names(layer, expert, mlp) for expert in range(count)] or [mlp_names(layer, mlp)]
        for first, _ in groups:
            value = apple.identifier(first[0].removesuffix(".weight")) + "_output"
            added = graph.users(value, "add")
            value = added[0].outputs[0] if added else value
            if mlp.activation == "silu":
                graph.user(value, "silu", first[0])
                continue
            mode = graph.function.constants[str(graph.user(value, "gelu", first[0]).inputs["mode"])].value
            if mode != {"gelu": "EXACT", "gelu_tanh": "TANH_APPROXIMATION"}[mlp.activation]:
                raise graph.fail(f"{first[0]}: gelu is {mode}, the model has {mlp.activation}")


def _read_epsilon(graph: Graph, name: str) -> float:
    """From the weight back through the norm: weight <- rsqrt <- mean + (root / largest)**2."""
    scaled = graph.user(apple.identifier(name), "mul", name)
    normed = graph.producer(scaled, "x", "mul", name)
    total = graph.producer(graph.producer(normed, "y", "rsqrt", name), "x", "add", name)
    squared = graph.producer(total, "y", "mul", name)
    root = graph.constant(graph.producer(squared, "x", "real_div", name), "x", name)
    inside = float(graph.constant(graph.producer(normed, "y", "rsqrt", name), "epsilon", name))
    if inside != 0 or graph.constant(_floor(graph, squared, name), "y", name) != root:
        raise graph.fail(f"{name}: the norm has two different epsilons")
    return apple.epsilon_of_root(np.asarray(root))


def _floor(graph: Graph, squared: Step, name: str) -> Step:
    """The maximum(largest, root) that a norm divides by."""
    return graph.producer(graph.producer(squared, "x", "real_div", name), "y", "maximum", name)
