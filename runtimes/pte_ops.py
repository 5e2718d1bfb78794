"""The decoder looking for itself in a finished .pte: each of its operations, with exactly the inputs it must have.

So a weight is found where the program uses it, whatever it is called; and a program that computes something else (a
cache that is not written, a linear without int8 activations) does not pass.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..export.config import EMBEDDING, Attention, Experts, Mlp, ModelConfig
from ..export.decoder import every_expert, qk_norm_names
from ..export.executorch_ops import GELU_CUBIC, GELU_LINEAR
from ..export.shapes import tensor_shapes
from .pte_attention import PteAttention
from .pte_flow import ANY, Operation, PteFlow

NO_VALUE = 2**32 - 1
_DENSE = ("xnn_datatype_fp32", "xnn_datatype_fp16")


@dataclass(frozen=True)
class Rows:
    """Where a weight is: rows [start, stop) of a fully connected operation's filter or bias."""

    operation: Operation
    start: int
    stop: int


@dataclass(frozen=True)
class Pending:
    """Linears with one input: who uses them knows how they may have been fused."""

    x: Hashable
    names: tuple[str, ...]


class PteOps:
    """An Ops whose values are the names of values in the file."""

    def __init__(self, flow: PteFlow, config: ModelConfig) -> None:
        self._flow = flow
        self._shapes = tensor_shapes(config)
        self.linears: dict[str, Rows] = {}
        self.vectors: dict[str, Hashable] = {}
        self.embeddings: dict[str, Operation] = {}
        self._constants: dict[str, float] = {}
        self._converts: dict[Hashable, list[Operation]] = {}
        self._attention = PteAttention(flow)
        self.tokens = self._attention.tokens

    @property
    def constants(self) -> dict[str, float]:
        """Epsilons, scales and attention parameters, named as ``export.inventory`` names them."""
        return self._constants | self._attention.constants

    @property
    def caches(self) -> tuple[str, ...]:
        """The name of each layer's ``quantize.cache.CacheFormat``."""
        return tuple(form.name for form in self._attention.formats)

    def embed(self, tokens: Hashable, name: str) -> Hashable:
        """See Ops."""
        for op in ("quantized_decomposed::embedding_byte", "quantized_decomposed::embedding_4bit"):
            found = self._flow.find(op, (ANY, ANY, ANY, ANY, ANY, tokens))
            if found:
                self.embeddings[name] = found
                return found.output
        found = self._flow.take("aten::embedding", (ANY, tokens), name)
        self.embeddings[name] = found
        widened = self._flow.find("XNNConvert", (found.output,))
        return widened.output if widened else found.output

    def linear(self, x: Hashable, names: tuple[str, ...]) -> Hashable:
        """See Ops."""
        return Pending(self.computed(x), names)

    def computed(self, x: Hashable) -> Hashable:
        """The value behind what may be pending."""
        return self._product(x.x, x.names) if isinstance(x, Pending) else x

    def _product(self, x: Hashable, names: tuple[str, ...]) -> Hashable:
        found = self._find_product(x, names)
        if found is None:
            rows = self._rows(names)
            raise self._flow.error(names[0], f"no product with {rows} rows reads what it must")
        return found

    def _rows(self, names: tuple[str, ...]) -> int:
        return sum(self._shapes[name][0] for name in names)

    def _find_product(self, x: Hashable, names: tuple[str, ...]) -> Hashable | None:
        """The output of the product with all these weights; None if the file has no such product."""

        def fits(operation: Operation) -> bool:
            return bool(operation.value("filter_id")["dims"] == [self._rows(names), self._shapes[names[0]][1]])

        sources = (x, *(operation.output for operation in self._converted(x)))
        found = self._flow.first("XNNFullyConnected", sources, fits)
        if found is None:
            return None
        self._check_activations(found, names[0], found.inputs[0] != x)
        self._note_rows(found, names)
        return found.output

    def _converted(self, x: Hashable) -> list[Operation]:
        """The conversions of x to int8, which several products may share."""
        if x not in self._converts:
            found = []
            while operation := self._flow.find("XNNConvert", (x,)):
                found.append(operation)
            self._converts[x] = found
        return self._converts[x]

    def _check_activations(self, product: Operation, name: str, converted: bool) -> None:
        dense = product.value("filter_id")["datatype"] in _DENSE
        activations = product.value("input1_id")["datatype"]
        if dense and converted:
            raise self._flow.error(name, "its activations are rounded to int8 although its weights are not quantised")
        if not dense and activations != "xnn_datatype_qdint8":
            raise self._flow.error(name, "quantised weights without int8 activations, which ExecuTorch computes wrong")

    def _note_rows(self, product: Operation, names: tuple[str, ...]) -> None:
        start = 0
        for name in names:
            stop = start + self._shapes[name][0]
            self.linears["lm_head.weight" if name == EMBEDDING else name] = Rows(product, start, stop)
            start = stop

    def rms_norm(self, x: Hashable, name: str, epsilon: float) -> Hashable:
        """See Ops."""
        x = self.computed(x)
        square = self._flow.take("XNNSquare", (x,), name).output
        mean = self._mean(square, name, "the mean of squares")
        root = self._flow.take("XNNReciprocalSquareRoot", (mean.output,), name).output
        normed = self._flow.take("XNNMultiply", (x, root), name).output
        scaled = self._flow.take("XNNMultiply", (normed,), name)
        self.vectors[name] = scaled.inputs[1]
        biases = dense_data(self._flow, mean, "bias_id")
        if biases.shape != (1,):
            raise self._flow.error(name, "its norm has no epsilon")
        self._constants[f"{name}:epsilon"] = float(biases[0])
        return scaled.output

    def _mean(self, x: Hashable, name: str, what: str) -> Operation:
        """The product that takes a mean, whose weights must all be 1/n."""
        mean = self._flow.take("XNNFullyConnected", (x,), name)
        weights = dense_data(self._flow, mean, "filter_id")
        width = weights.shape[-1]
        if weights.shape != (1, width) or (weights != np.float32(1 / width)).any():
            raise self._flow.error(name, f"it does not take {what}")
        return mean

    def layer_norm(self, x: Hashable, name: str, epsilon: float) -> Hashable:
        """See Ops."""
        x = self.computed(x)
        mean = self._mean(x, name, "the mean")
        if mean.node["bias_id"] != NO_VALUE:
            raise self._flow.error(name, "something is added to its mean")
        centred = self._flow.take("XNNSubtract", (x, mean.output), name).output
        added = self._flow.take("XNNAdd", (self.rms_norm(centred, name, epsilon),), name)
        self.vectors[name.removesuffix("weight") + "bias"] = added.inputs[1]
        return added.output

    def add(self, x: Hashable, y: Hashable, name: str) -> Hashable:
        """See Ops."""
        return self._flow.take("XNNAdd", (self.computed(x), self.computed(y)), name).output

    def scale(self, x: Hashable, factor: float, name: str) -> Hashable:
        """See Ops."""
        output, self._constants[f"{name}:scale"] = self._attention.number("XNNMultiply", self.computed(x), name)
        return output

    def soft_cap(self, x: Hashable, cap: float, name: str) -> Hashable:
        """See Ops."""
        output, self._constants[f"{name}:softcap"] = self._attention.capped(self.computed(x), name)
        return output

    def add_positions(self, x: Hashable, name: str) -> Hashable:
        """See Ops."""
        rows, self.vectors[name] = self._attention.rows(name)
        return self._flow.take("XNNAdd", (self.computed(x), rows), name).output

    def add_norm(self, x: Hashable, residual: Hashable, name: str, epsilon: float) -> tuple[Hashable, Hashable]:
        """See Ops."""
        total = self._flow.take("XNNAdd", (residual, self.computed(x)), name).output
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Hashable, layer: int, attention: Attention) -> Hashable:
        """See Ops."""
        assert isinstance(qkv, Pending)
        query, key, value = qkv.names
        q, k = self._normed_and_rotated(qkv.x, query, key, layer, attention)
        v = self._heads(self._product(qkv.x, (value,)), attention.kv_heads, attention, value)
        return self._attention.cached(q, k, v, layer, attention)

    def _normed_and_rotated(
        self, x: Hashable, query: str, key: str, layer: int, attention: Attention
    ) -> tuple[Hashable, Hashable]:
        """Queries and keys, from one product if the file has them in one."""
        heads, kv_heads, find = attention.heads, attention.kv_heads, self._attention
        both = None if attention.qk_norm is not None else self._find_product(x, (query, key))
        if both is None:
            wanted = zip((query, key), (heads, kv_heads), qk_norm_names(layer), strict=True)
            products = [(self._product(x, (name,)), name, count, norm) for name, count, norm in wanted]
            q, k = (self._normed_heads(*product, attention) for product in products)
            return find.rotate(q, attention, query), find.rotate(k, attention, key)
        rotated = find.rotate(self._heads(both, heads + kv_heads, attention, query), attention, query)
        return find.sliced(rotated, 2, 0, heads, query), find.sliced(rotated, 2, heads, kv_heads, key)

    def _normed_heads(self, x: Hashable, name: str, count: int, norm: str, attention: Attention) -> Hashable:
        """Heads (1, tokens, heads, head_dim), normed each by itself or all together, if they are."""
        if attention.qk_norm is not None and not attention.qk_norm.per_head:
            x = self.rms_norm(x, norm, attention.qk_norm.epsilon)
        x = self._heads(x, count, attention, name)
        if attention.qk_norm is not None and attention.qk_norm.per_head:
            x = self.rms_norm(x, norm, attention.qk_norm.epsilon)
        return x

    def _heads(self, x: Hashable, heads: int, attention: Attention, what: str) -> Hashable:
        return self._attention.reshaped(x, [1, 0, heads, attention.head_dim], what)

    def gated(self, gate_up: Hashable, activation: str) -> Hashable:
        """See Ops."""
        assert isinstance(gate_up, Pending)
        gate, up = (self._product(gate_up.x, (name,)) for name in gate_up.names)
        return self._flow.take(
            "XNNMultiply", (self._activated(gate, activation, gate_up.names[0]), up), gate_up.names[0]
        ).output

    def activate(self, x: Hashable, activation: str) -> Hashable:
        """See Ops."""
        what = x.names[0] if isinstance(x, Pending) else activation
        return self._activated(self.computed(x), activation, what)

    def _activated(self, x: Hashable, activation: str, what: str) -> Hashable:
        flow, inner = self._flow, x
        if activation == "gelu":
            return flow.take("XNNGelu", (x,), what).output
        if activation == "gelu_tanh":
            factor = flow.take("XNNSquare", (x,), what).output
            factor = self._attention.expected("XNNMultiply", factor, GELU_CUBIC, what)
            factor = self._attention.expected("XNNAdd", factor, GELU_LINEAR, what)
            inner = flow.take("XNNMultiply", (x, factor), what).output
        sigmoid = flow.take("XNNSigmoid", (inner,), what).output
        return flow.take("XNNMultiply", (x, sigmoid), what).output

    def experts(self, x: Hashable, layer: int, mlp: Mlp) -> Hashable:
        """See Ops."""
        return every_expert(self, self.computed(x), layer, mlp)

    def route(self, logits: Hashable, layer: int, experts: Experts) -> Hashable:
        """See Ops."""
        flow, what = self._flow, f"model.layers.{layer}.mlp"
        shares = flow.take("XNNSoftmax", (self.computed(logits),), what).output
        chosen = flow.take("aten::topk", (shares,), what)
        active, axis, largest = (flow.number(value) for value in chosen.inputs[1:4])
        if axis != -1 or not largest or active is None:
            raise flow.error(what, "it does not choose the experts with the largest weights")
        values, indices = chosen.inputs[5:7]
        summed = flow.find("XNNFullyConnected", (values,))
        if summed is not None and (dense_data(flow, summed, "filter_id") != 1).any():
            raise flow.error(what, "its experts' weights are divided by something else than their sum")
        self._constants |= {f"{what}:active experts": active, f"{what}:renormalise": summed is not None}
        if summed is not None:
            values = flow.take("XNNDiv", (values, summed.output), what).output
        nothing = self._attention.expected("XNNMultiply", shares, 0.0, what)
        spread = flow.take("aten::scatter", (nothing, ANY, indices, values), what)
        if flow.number(spread.inputs[1]) != -1:
            raise flow.error(what, "the weights of its experts are put along another axis")
        return spread.output

    def weigh(self, x: Hashable, weights: Hashable, layer: int, expert: int) -> Hashable:
        """See Ops."""
        what = f"model.layers.{layer}.mlp.experts.{expert}"
        share = self._attention.sliced(self.computed(weights), 2, expert, 1, what, rank=3)
        return self._flow.take("XNNMultiply", (self.computed(x), share), what).output

    def last_token(self, x: Hashable) -> Hashable:
        """See Ops. Programs that give every token's logits have no such step."""
        x = self.computed(x)
        found = self._flow.find("aten::slice_copy", (x,))
        if found is None:
            return x
        if [self._flow.number(value) for value in found.inputs[1:3]] != [1.0, -1.0]:
            raise self._flow.error("last token", "another one is taken")
        return found.output


def dense_data(flow: PteFlow, operation: Operation, field: str) -> np.ndarray:
    """The dense constant behind one of an operation's fields, float32 or float16."""
    if operation.node[field] == NO_VALUE:
        return np.zeros(0, np.float32)
    value = operation.value(field)
    assert operation.graph is not None
    if value["datatype"] not in _DENSE or not value["constant_buffer_idx"]:
        raise flow.error(operation.op, f"its {field} is not a constant of floating point")
    dtype = np.float32 if value["datatype"] == _DENSE[0] else np.float16
    return flow.pte.as_array(operation.graph.data[value["constant_buffer_idx"]], dtype, value["dims"])
