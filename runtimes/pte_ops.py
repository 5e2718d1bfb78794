"""The decoder looking for itself in a finished .pte: each of its operations, with exactly the inputs it must have.

So a weight is found where the program uses it, whatever it is called; and a program that computes something else (a
cache that is not written, a linear without int8 activations) does not pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..export.config import EMBEDDING, Attention, ModelConfig, rotary_tables
from ..export.shapes import tensor_shapes
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
        self.norms: dict[str, Hashable] = {}
        self.embeddings: dict[str, Operation] = {}
        self.constants: dict[str, float] = {}
        self._converts: dict[Hashable, list[Operation]] = {}
        self._caches: set[Hashable] = set()
        inputs = flow.pte.plan["inputs"]
        if len(inputs) != 2:
            raise flow.error("forward", f"it takes {len(inputs)} inputs instead of tokens and a position")
        self.tokens: Hashable = inputs[0]
        self._start = flow.take("aten::_local_scalar_dense", (inputs[1],), "position").output
        count = flow.take("aten::sym_size", (self.tokens,), "number of tokens").output
        end = flow.take("executorch_prim::add", (self._start, count), "position").output
        slices = [flow.take("aten::slice_copy", (ANY, ANY, self._start, end), "rotary table") for _ in range(2)]
        self._rotary = [found.output for found in slices]
        self._check_rotary(config.attention, slices)

    def _check_rotary(self, attention: Attention, slices: Sequence[Operation]) -> None:
        found = [self._flow.pte.constant(_value_index(operation.inputs[0])) for operation in slices]
        cosines, sines = rotary_tables(attention.rope, attention.head_dim, found[0].shape[0])
        expected = np.concatenate([cosines, cosines], 1), np.concatenate([-sines, sines], 1)
        for name, left, right in zip(("cosines", "sines"), found, expected, strict=True):
            if left.size != right.size or not np.array_equal(left.reshape(right.shape), right):
                raise self._flow.error(f"rotary {name}", "the table differs from the model's")

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
        mean = self._flow.take("XNNFullyConnected", (square,), name)
        root = self._flow.take("XNNReciprocalSquareRoot", (mean.output,), name).output
        normed = self._flow.take("XNNMultiply", (x, root), name).output
        scaled = self._flow.take("XNNMultiply", (normed,), name)
        self.norms[name] = scaled.inputs[1]
        self.constants[f"{name}:epsilon"] = self._epsilon(mean, name)
        return scaled.output

    def _epsilon(self, mean: Operation, name: str) -> float:
        """The bias of the product that takes the mean, whose weights must all be 1/n."""
        width = mean.value("filter_id")["dims"][-1]
        weights, biases = dense_data(self._flow, mean, "filter_id"), dense_data(self._flow, mean, "bias_id")
        if weights.shape != (1, width) or biases.shape != (1,) or (weights != np.float32(1 / width)).any():
            raise self._flow.error(name, "it does not take the mean of squares")
        return float(biases[0])

    def add_norm(self, x: Hashable, residual: Hashable, name: str, epsilon: float) -> tuple[Hashable, Hashable]:
        """See Ops."""
        total = self._flow.take("XNNAdd", (residual, self.computed(x)), name).output
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Hashable, layer: int, attention: Attention) -> Hashable:
        """See Ops."""
        assert isinstance(qkv, Pending)
        what = f"model.layers.{layer}.self_attn"
        query, key, value = qkv.names
        q, k = self._rotated(qkv.x, query, key, attention)
        v = self._heads(self._product(qkv.x, (value,)), attention.kv_heads, attention, value)
        writes = [self._flow.take("llama::update_cache", (new, ANY, self._start), f"{what}: cache") for new in (k, v)]
        caches = [write.inputs[1] for write in writes]
        attend = self._flow.take("llama::custom_sdpa", (q, *caches, self._start), what)
        if attend.order < max(write.order for write in writes):
            raise self._flow.error(what, "it reads the cache before the new keys and values are in it")
        if len(self._caches.union(caches)) != len(self._caches) + 2:
            raise self._flow.error(what, "its cache belongs to another layer too")
        self._caches.update(caches)
        self._note_attention(f"{what}:", attend)
        return self._reshaped(attend.output, [1, 0, attention.query_width], what)

    def _note_attention(self, prefix: str, attend: Operation) -> None:
        """Parameters as the kernel sees them; without a scale it takes 1 / sqrt(head_dim)."""
        flow = self._flow
        mask, _, causal, scale = (flow.number(value) for value in attend.inputs[4:8])
        if mask is not None or not causal:
            raise flow.error(prefix.rstrip(":"), "its attention is not causal")
        _, _, heads, head_dim = flow.dims(attend.inputs[0])
        self.constants |= {
            prefix + "heads": heads,
            prefix + "kv_heads": flow.dims(attend.inputs[1])[2],
            prefix + "scale": head_dim**-0.5 if scale is None else scale,
            prefix + "window": -1,
            prefix + "softcap": 0.0,
        }

    def _rotated(self, x: Hashable, query: str, key: str, attention: Attention) -> tuple[Hashable, Hashable]:
        heads, kv_heads = attention.heads, attention.kv_heads
        both = self._find_product(x, (query, key))
        if both is None:
            pairs = ((query, heads), (key, kv_heads))
            q, k = (self._rotate(self._heads(self._product(x, (n,)), c, attention, n), attention, n) for n, c in pairs)
            return q, k
        rotated = self._rotate(self._heads(both, heads + kv_heads, attention, query), attention, query)
        q = self._sliced(rotated, 2, 0, heads, query)
        return q, self._sliced(rotated, 2, heads, kv_heads, key)

    def _heads(self, x: Hashable, heads: int, attention: Attention, what: str) -> Hashable:
        return self._reshaped(x, [1, 0, heads, attention.head_dim], what)

    def _reshaped(self, x: Hashable, dims: list[int], what: str) -> Hashable:
        return self._flow.take("XNNStaticReshape", (x,), what, lambda found: found.node["new_shape"] == dims).output

    def _sliced(self, x: Hashable, axis: int, start: int, size: int, what: str) -> Hashable:
        offsets, sizes = [0] * 4, [0] * 4
        offsets[axis], sizes[axis] = start, size

        def fits(found: Operation) -> bool:
            return bool(found.node["offsets"] == offsets and found.node["sizes"] == sizes)

        return self._flow.take("XNNStaticSlice", (x,), what, fits).output

    def _rotate(self, x: Hashable, attention: Attention, what: str) -> Hashable:
        half = attention.head_dim // 2
        halves = self._sliced(x, 3, half, half, what), self._sliced(x, 3, 0, half, what)
        swapped = self._flow.take("XNNConcatenate2", halves, what, lambda found: found.node["axis"] == 3).output
        along = self._flow.take("XNNMultiply", (x, self._rotary[0]), what).output
        across = self._flow.take("XNNMultiply", (swapped, self._rotary[1]), what).output
        return self._flow.take("XNNAdd", (along, across), what).output

    def gated(self, gate_up: Hashable, activation: str) -> Hashable:
        """See Ops."""
        assert isinstance(gate_up, Pending)
        gate, up = (self._product(gate_up.x, (name,)) for name in gate_up.names)
        what = gate_up.names[0]
        sigmoid = self._flow.take("XNNSigmoid", (gate,), what).output
        silu = self._flow.take("XNNMultiply", (gate, sigmoid), what).output
        return self._flow.take("XNNMultiply", (silu, up), what).output

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


def _value_index(value: Hashable) -> int:
    assert isinstance(value, int), value
    return value
