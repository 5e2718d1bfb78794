"""The decoder's operations as operations of XNNPACK, and of the kernels that ExecuTorch brings for language models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.store import CanonicalTensor, Weights, bf16_bits, bias_of, pack_int4
from ..quantize.tensor import QuantizedTensor
from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import every_expert, qk_norm_names
from .executorch_attention import AttentionWriter
from .executorch_builder import Builder
from .executorch_file import PteFile
from .executorch_graph import TOKENS, Constant, Filter, Kernel, Node, Tensor

_TO_THE_END = 2**63 - 1
GELU_LINEAR = 2 * (2 / np.pi) ** 0.5
GELU_CUBIC = 0.044715 * GELU_LINEAR


@dataclass(frozen=True, eq=False)
class Product:
    """Linears with one input that are not yet computed: who uses them knows which to compute together."""

    x: Tensor
    names: tuple[str, ...]


Value = Tensor | Product


class ExecuTorchOps:
    """Records the operations of a program; weights are written to the file as they are met.

    Quantised linears get int8 activations with one scale and zero point for each token, which XNNPACK computes when
    the program runs. There is no weight-only form: XNNPACK has no kernel that multiplies fp32 activations by
    group-wise int4, and ExecuTorch's own lowering of it computes wrong results without a warning.
    """

    def __init__(
        self,
        file: PteFile,
        weights: Weights,
        config: ModelConfig,
        context: int,
        every_token: bool = False,
        int8_cache: bool = False,
    ) -> None:
        self._file = file
        self._builder = Builder(file)
        self._weights = weights
        self._every_token = every_token
        self.tokens, self.position = Tensor((1, TOKENS), "int64"), Tensor((1,), "int64")
        self._tables: dict[str, tuple[Constant, Constant | None]] = {}  # embedding -> its values, its scales
        self._converted: dict[tuple[Tensor, str], Tensor] = {}
        self._attention = AttentionWriter(self._builder, self.tokens, self.position, context, int8_cache)

    @property
    def nodes(self) -> list[Node]:
        """What is recorded so far."""
        return self._builder.nodes

    def embed(self, tokens: Value, name: str) -> Value:
        """See Ops. By ExecuTorch's kernels for quantised tables; fp16 rows are widened."""
        assert isinstance(tokens, Tensor)
        table = self._weights[name]
        dims = (1, TOKENS, table.shape[1])
        if isinstance(table, QuantizedTensor):
            return self._embed_quantized(tokens, name, table, dims)
        values = self._lazy(name, table)
        self._tables[name] = values, None
        rows = self._builder.kernel("aten::embedding.out", [values, tokens, -1, False, False], dims, values.dtype)
        return rows if values.dtype == "float32" else self._builder.xnn("XNNConvert", {"input_id": rows}, dims)

    def _lazy(self, name: str, table: NDArray[Any]) -> Constant:
        """A constant that is read again when it is written: a table need not wait in memory until then."""
        index = self._file.constant(table.nbytes, lambda: [_dense(self._weights[name])])
        return Constant(index, table.shape, table.dtype.name)

    def _embed_quantized(self, tokens: Tensor, name: str, table: QuantizedTensor, dims: Sequence[int]) -> Tensor:
        rows, columns = table.shape
        scales = self._builder.array(table.scales)
        if table.bits == 8:
            index = self._file.constant(rows * columns, lambda: [_quantized(self._weights[name]).codes])
            codes, op, lowest, highest = Constant(index, (rows, columns), "int8"), "embedding_byte", -128, 127
        else:
            index = self._file.constant(rows * columns // 2, lambda: [high_first(_quantized(self._weights[name]))])
            codes, op, lowest, highest = Constant(index, (rows, columns // 2), "uint8"), "embedding_4bit", -8, 7
        self._tables[name] = codes, scales
        arguments = [codes, scales, None, lowest, highest, tokens]
        return self._builder.kernel(f"quantized_decomposed::{op}.out", arguments, dims)

    def linear(self, x: Value, names: tuple[str, ...]) -> Value:
        """See Ops."""
        return Product(self.compute(x), names)

    def compute(self, value: Value) -> Tensor:
        """The one tensor that a value is."""
        if isinstance(value, Tensor):
            return value
        (name,) = value.names
        return self._multiply(value.x, (name,))

    def _multiply(self, x: Tensor, names: tuple[str, ...]) -> Tensor:
        """One product with the rows of all named weights, one below the other."""
        weight, rows = self._filter(names)
        quantized = weight.scale_key is not None
        inputs = {"input1_id": self._convert(x, weight) if quantized else x, "filter_id": weight}
        return self._builder.xnn("XNNFullyConnected", inputs | {"bias_id": self._bias(names)}, (*x.dims[:-1], rows))

    def _convert(self, x: Tensor, weight: Filter) -> Tensor:
        """int8 activations; converted once for all weights of a type (some ARM kernels want them packed for it)."""
        key = x, weight.datatype
        if key not in self._converted:
            self._converted[key] = self._builder.xnn("XNNConvert", {"input_id": x}, x.dims, "qd8")
        return self._converted[key]

    def _filter(self, names: tuple[str, ...]) -> tuple[Filter, int]:
        if names[0] in self._tables:
            return self._tied_filter(names[0])
        parts = [self._weights[name] for name in names]
        first, key = parts[0], "+".join(names)
        dims = (sum(part.shape[0] for part in parts), first.shape[1])
        if not isinstance(first, QuantizedTensor):
            self._file.named(key, map(_dense, parts))
            return Filter(key, _datatype(first), dims), dims[0]
        quantized = [_quantized(part) for part in parts]
        if first.bits == 8:
            self._file.named(key, (part.codes for part in quantized))
            scales: Iterable[NDArray[Any]] = (part.scales for part in quantized)
        else:
            self._file.named(key, (pack_int4(part.codes) for part in quantized))
            scales = (bf16_bits(part.scales) for part in quantized)
        scale_key = self._file.named(f"{key}:scales", scales)
        return Filter(key, _datatype(first), dims, scale_key, None if first.bits == 8 else first.group), dims[0]

    def _tied_filter(self, name: str) -> tuple[Filter, int]:
        """The head of a tied model: the table's own bytes, wherever both kernels read the same ones.

        XNNPACK and the embedding kernel agree on int8, fp16 and fp32. For 4 bits they do not (the first column of a
        pair in the low nibble here, in the high nibble there; bf16 scales here, float32 there), so that such a table
        is stored twice.
        """
        table = self._weights[name]
        values, scales = self._tables[name]
        if isinstance(table, QuantizedTensor) and table.bits == 4:
            del self._tables[name]
            return self._filter((name,))
        key = self._file.named_constant(name, values.index)
        scale_key = None if scales is None else self._file.named_constant(f"{name}:scales", scales.index)
        return Filter(key, _datatype(table), (table.shape[0], table.shape[1]), scale_key), table.shape[0]

    def _bias(self, names: tuple[str, ...]) -> Filter | None:
        parts = [bias for bias in (bias_of(self._weights, name) for name in names) if bias is not None]
        if not parts:
            return None
        key = "+".join(name.removesuffix("weight") + "bias" for name in names)
        self._file.named(key, (part.astype(np.float32) for part in parts))
        return Filter(key, "xnn_datatype_fp32", (sum(len(part) for part in parts),))

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """See Ops."""
        return self._normed(self.compute(x), name, epsilon)

    def _normed(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """x over the root of its mean square, times the weight."""
        root = self._builder.unary("XNNReciprocalSquareRoot", self._mean(self._builder.unary("XNNSquare", x), epsilon))
        normed = self._builder.binary("XNNMultiply", x, root)
        return self._builder.binary("XNNMultiply", normed, self._vector(name))

    def _vector(self, name: str) -> Constant:
        return self._builder.array(_dense(self._weights[name]).astype(np.float32))

    def _mean(self, x: Tensor, epsilon: float | None) -> Tensor:
        """The mean over the last axis, plus epsilon: a product with a row of 1/n, and a bias, in one operation."""
        width = x.dims[-1]
        mean = np.full((1, width), 1 / width, np.float32)
        inputs = {
            "input1_id": x,
            "filter_id": Filter(self._file.named(f"mean of {width}", [mean]), "xnn_datatype_fp32", mean.shape),
            "bias_id": None if epsilon is None else Filter(self._epsilon(epsilon), "xnn_datatype_fp32", (1,)),
        }
        return self._builder.xnn("XNNFullyConnected", inputs, (*x.dims[:-1], 1))

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """See Ops. The root mean square norm of what is left without the mean, plus the bias."""
        x = self.compute(x)
        centred = self._builder.binary("XNNSubtract", x, self._mean(x, None))
        normed = self._normed(centred, name, epsilon)
        return self._builder.binary("XNNAdd", normed, self._vector(name.removesuffix("weight") + "bias"))

    def add(self, x: Value, y: Value, name: str) -> Value:
        """See Ops."""
        return self._builder.binary("XNNAdd", self.compute(x), self.compute(y))

    def scale(self, x: Value, factor: float, name: str) -> Value:
        """See Ops."""
        return self._builder.number("XNNMultiply", self.compute(x), factor)

    def soft_cap(self, x: Value, cap: float, name: str) -> Value:
        """See Ops."""
        bent = self._builder.unary("XNNTanh", self._builder.number("XNNDiv", self.compute(x), cap))
        return self._builder.number("XNNMultiply", bent, cap)

    def add_positions(self, x: Value, name: str) -> Value:
        """See Ops. Rows behind the context are never asked for, but kept: the table is what was canonical."""
        table = _dense(self._weights[name]).astype(np.float32)
        return self._builder.binary("XNNAdd", self.compute(x), self._attention.rows(table))

    def _epsilon(self, epsilon: float) -> str:
        return self._file.named(f"epsilon {epsilon!r}", [np.array([epsilon], np.float32)])

    def add_norm(self, x: Value, residual: Value, name: str, epsilon: float) -> tuple[Value, Value]:
        """See Ops."""
        total = self._builder.binary("XNNAdd", self.compute(residual), self.compute(x))
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Value, layer: int, attention: Attention) -> Value:
        """See Ops. The caches are (1, context, kv heads, head_dim), as custom_sdpa reads them."""
        assert isinstance(qkv, Product)
        query, key, value = qkv.names
        v = Product(qkv.x, (value,))
        if attention.qk_norm is not None or self._form(query) != self._form(key):
            q, k = (self._multiply(qkv.x, (name,)) for name in (query, key))
            return self.attend(q, k, self.compute(v), layer, attention)
        writer, builder = self._attention, self._builder
        both = writer.rotate(writer.heads(self._multiply(qkv.x, (query, key)), attention), attention)
        q = builder.slice(both, 2, 0, attention.heads)
        k = builder.slice(both, 2, attention.heads, attention.kv_heads)
        return writer.cached(q, k, writer.heads(self.compute(v), attention), attention)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, attention: Attention) -> Tensor:
        """Attention for queries, keys and values apart, each (1, tokens, width)."""
        writer, norm = self._attention, attention.qk_norm
        if norm is not None and not norm.per_head:
            q, k = (self._normed(x, name, norm.epsilon) for x, name in zip((q, k), qk_norm_names(layer), strict=True))
        q, k = (writer.heads(x, attention) for x in (q, k))
        if norm is not None and norm.per_head:
            q, k = (self._normed(x, name, norm.epsilon) for x, name in zip((q, k), qk_norm_names(layer), strict=True))
        q, k = (writer.rotate(x, attention) for x in (q, k))
        return writer.cached(q, k, writer.heads(v, attention), attention)

    def _form(self, name: str) -> tuple[str, int | None, bool]:
        """What must agree for weights to be one."""
        weight = self._weights[name]
        group = weight.group if isinstance(weight, QuantizedTensor) else None
        return _datatype(weight), group, bias_of(self._weights, name) is None

    def gated(self, gate_up: Value, activation: str) -> Value:
        """See Ops."""
        assert isinstance(gate_up, Product)
        gate, up = (self._multiply(gate_up.x, (name,)) for name in gate_up.names)
        return self.gate(gate, up, activation)

    def gate(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """activation(gate) * up for two tensors."""
        return self._builder.binary("XNNMultiply", self.activate(gate, activation), up)

    def activate(self, x: Value, activation: str) -> Tensor:
        """See Ops. XNNPACK has no silu, nor gelu's approximation, which is x * sigmoid(2a(x + b x^3))."""
        x, builder = self.compute(x), self._builder
        if activation == "gelu":
            return builder.unary("XNNGelu", x)
        inner = x
        if activation == "gelu_tanh":
            factor = builder.number("XNNMultiply", builder.unary("XNNSquare", x), GELU_CUBIC)
            inner = builder.binary("XNNMultiply", x, builder.number("XNNAdd", factor, GELU_LINEAR))
        return builder.binary("XNNMultiply", x, builder.unary("XNNSigmoid", inner))

    def experts(self, x: Value, layer: int, mlp: Mlp) -> Value:
        """See Ops. XNNPACK's weights are packed when the program is loaded, and cannot be chosen when it runs."""
        return every_expert(self, self.compute(x), layer, mlp)

    def route(self, logits: Value, layer: int, experts: Experts) -> Value:
        """See Ops."""
        builder = self._builder
        shares = builder.unary("XNNSoftmax", self.compute(logits))
        dims = (*shares.dims[:-1], experts.active)
        values, chosen = Tensor(dims), Tensor(dims, "int64")
        arguments = (shares, experts.active, -1, True, True)
        builder.nodes.append(Kernel("aten::topk.values", arguments, values, second_output=chosen))
        if experts.renormalise:
            ones = np.ones((1, experts.active), np.float32)
            key = self._file.named(f"sum of {experts.active}", [ones])
            inputs = {"input1_id": values, "filter_id": Filter(key, "xnn_datatype_fp32", ones.shape), "bias_id": None}
            total = builder.xnn("XNNFullyConnected", inputs, (*dims[:-1], 1))
            values = builder.binary("XNNDiv", values, total)
        nothing = builder.number("XNNMultiply", shares, 0.0)
        return builder.kernel("aten::scatter.src_out", [nothing, -1, chosen, values], shares.dims)

    def weigh(self, x: Value, weights: Value, layer: int, expert: int) -> Value:
        """See Ops."""
        x, weights = self.compute(x), self.compute(weights)
        return self._builder.binary("XNNMultiply", x, self._builder.slice(weights, 2, expert, 1))

    def last_token(self, x: Value) -> Value:
        """See Ops."""
        x = self.compute(x)
        if self._every_token:
            return x
        dims = (1, 1, x.dims[-1])
        return self._builder.kernel("aten::slice_copy.Tensor_out", [x, 1, -1, _TO_THE_END, 1], dims)


def high_first(table: QuantizedTensor) -> NDArray[np.uint8]:
    """Codes as embedding_4bit reads them: code + 8, the even column in the high nibble."""
    packed = pack_int4(table.codes)
    return (packed << np.uint8(4)) | (packed >> np.uint8(4))


def _datatype(weight: CanonicalTensor) -> str:
    if isinstance(weight, QuantizedTensor):
        return "xnn_datatype_qcint8" if weight.bits == 8 else "xnn_datatype_qbint4"
    return "xnn_datatype_fp32" if weight.dtype == np.float32 else "xnn_datatype_fp16"


def _dense(weight: CanonicalTensor) -> NDArray[Any]:
    assert not isinstance(weight, QuantizedTensor)
    return weight


def _quantized(weight: CanonicalTensor) -> QuantizedTensor:
    assert isinstance(weight, QuantizedTensor)
    return weight
