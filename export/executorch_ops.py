"""The decoder's operations as operations of XNNPACK, and of the kernels that ExecuTorch brings for language models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.store import CanonicalTensor, Weights, bf16_bits, bias_of, pack_int4
from ..quantize.tensor import QuantizedTensor
from .config import Attention, ModelConfig, rotary_tables
from .executorch_file import PteFile
from .executorch_graph import TOKENS, Argument, Cache, Constant, Filter, Kernel, Node, Scalar, Tensor, XnnNode

_TO_THE_END = 2**63 - 1


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
        self, file: PteFile, weights: Weights, config: ModelConfig, context: int, every_token: bool = False
    ) -> None:
        self._file = file
        self._weights = weights
        self._every_token = every_token
        self.nodes: list[Node] = []
        self.tokens, self.position = Tensor((1, TOKENS), "int64"), Tensor((1,), "int64")
        self._context = context
        self._tables: dict[str, tuple[Constant, Constant | None]] = {}  # embedding -> its values, its scales
        self._converted: dict[tuple[Tensor, str], Tensor] = {}
        self._start = Scalar()
        self._cosines, self._sines = self._rotary(config.attention)

    def _kernel(self, op: str, arguments: Sequence[Argument], dims: Sequence[int], dtype: str = "float32") -> Tensor:
        out = Tensor(tuple(dims), dtype)
        self.nodes.append(Kernel(op, tuple(arguments), out))
        return out

    def _xnn(
        self, op: str, inputs: dict[str, Any], dims: Sequence[int], dtype: str = "float32", **fields: Any
    ) -> Tensor:
        out = Tensor(tuple(dims), dtype)
        self.nodes.append(XnnNode(op, inputs, out, fields))
        return out

    def _unary(self, op: str, x: Tensor) -> Tensor:
        return self._xnn(op, {"input_id": x}, x.dims)

    def _binary(self, op: str, left: Tensor, right: Tensor | Constant) -> Tensor:
        """Element by element; the result has the shape of ``left``."""
        return self._xnn(op, {"input1_id": left, "input2_id": right}, left.dims)

    def _array(self, array: NDArray[Any]) -> Constant:
        index = self._file.constant(array.nbytes, lambda: [array])
        return Constant(index, array.shape, array.dtype.name)

    def _rotary(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """This call's rows of the rotary tables, each (tokens, 1, head_dim), as ``_rotate`` wants them."""
        end, count = Scalar(), Scalar()
        self.nodes += [
            Kernel("aten::_local_scalar_dense.", (self.position,), self._start, repeat_output=False),
            Kernel("aten::sym_size.int", (self.tokens, 1), count, repeat_output=False),
            Kernel("executorch_prim::add.Scalar", (self._start, count), end, repeat_output=False),
        ]
        cosines, sines = rotary_tables(attention.rope, attention.head_dim, self._context)
        tables = np.concatenate([cosines, cosines], 1), np.concatenate([-sines, sines], 1)
        dims = (TOKENS, 1, attention.head_dim)
        first, second = (
            self._kernel("aten::slice_copy.Tensor_out", [self._array(table[:, None]), 0, self._start, end, 1], dims)
            for table in tables
        )
        return first, second

    def embed(self, tokens: Value, name: str) -> Value:
        """See Ops. By ExecuTorch's kernels for quantised tables; fp16 rows are widened."""
        assert isinstance(tokens, Tensor)
        table = self._weights[name]
        dims = (1, TOKENS, table.shape[1])
        if isinstance(table, QuantizedTensor):
            return self._embed_quantized(tokens, name, table, dims)
        values = self._lazy(name, table)
        self._tables[name] = values, None
        rows = self._kernel("aten::embedding.out", [values, tokens, -1, False, False], dims, values.dtype)
        return rows if values.dtype == "float32" else self._xnn("XNNConvert", {"input_id": rows}, dims)

    def _lazy(self, name: str, table: NDArray[Any]) -> Constant:
        """A constant that is read again when it is written: a table need not wait in memory until then."""
        index = self._file.constant(table.nbytes, lambda: [_dense(self._weights[name])])
        return Constant(index, table.shape, table.dtype.name)

    def _embed_quantized(self, tokens: Tensor, name: str, table: QuantizedTensor, dims: Sequence[int]) -> Tensor:
        rows, columns = table.shape
        scales = self._array(table.scales)
        if table.bits == 8:
            index = self._file.constant(rows * columns, lambda: [_quantized(self._weights[name]).codes])
            codes, op, lowest, highest = Constant(index, (rows, columns), "int8"), "embedding_byte", -128, 127
        else:
            index = self._file.constant(rows * columns // 2, lambda: [high_first(_quantized(self._weights[name]))])
            codes, op, lowest, highest = Constant(index, (rows, columns // 2), "uint8"), "embedding_4bit", -8, 7
        self._tables[name] = codes, scales
        arguments = [codes, scales, None, lowest, highest, tokens]
        return self._kernel(f"quantized_decomposed::{op}.out", arguments, dims)

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
        return self._xnn("XNNFullyConnected", inputs | {"bias_id": self._bias(names)}, (*x.dims[:-1], rows))

    def _convert(self, x: Tensor, weight: Filter) -> Tensor:
        """int8 activations; converted once for all weights of a type (some ARM kernels want them packed for it)."""
        key = x, weight.datatype
        if key not in self._converted:
            self._converted[key] = self._xnn("XNNConvert", {"input_id": x}, x.dims, "qd8")
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
        """See Ops. The mean of squares plus epsilon is a product with a row of 1/n, and a bias: one operation."""
        x = self.compute(x)
        width = x.dims[-1]
        mean = np.full((1, width), 1 / width, np.float32)
        inputs = {
            "input1_id": self._unary("XNNSquare", x),
            "filter_id": Filter(self._file.named(f"mean of {width}", [mean]), "xnn_datatype_fp32", mean.shape),
            "bias_id": Filter(self._epsilon(epsilon), "xnn_datatype_fp32", (1,)),
        }
        squares = self._xnn("XNNFullyConnected", inputs, (*x.dims[:-1], 1))
        normed = self._binary("XNNMultiply", x, self._unary("XNNReciprocalSquareRoot", squares))
        return self._binary("XNNMultiply", normed, self._array(_dense(self._weights[name]).astype(np.float32)))

    def _epsilon(self, epsilon: float) -> str:
        return self._file.named(f"epsilon {epsilon!r}", [np.array([epsilon], np.float32)])

    def add_norm(self, x: Value, residual: Value, name: str, epsilon: float) -> tuple[Value, Value]:
        """See Ops."""
        total = self._binary("XNNAdd", self.compute(residual), self.compute(x))
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Value, layer: int, attention: Attention) -> Value:
        """See Ops. The caches are (1, context, kv heads, head_dim), as custom_sdpa reads them."""
        assert isinstance(qkv, Product)
        if attention.window is not None or attention.softcap is not None:
            raise InputError("the ExecuTorch target has no sliding window or soft-cap yet; export with --to onnx")
        query, key, value = qkv.names
        v = Product(qkv.x, (value,))
        if self._form(query) != self._form(key):
            q, k = (self._multiply(qkv.x, (name,)) for name in (query, key))
            return self.attend(q, k, self.compute(v), attention)
        both = self._rotate(self._heads(self._multiply(qkv.x, (query, key)), attention))
        q = self._slice(both, 2, 0, attention.heads)
        k = self._slice(both, 2, attention.heads, attention.kv_heads)
        return self._cached(q, k, self._heads(self.compute(v), attention), attention)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """Attention for queries, keys and values apart, each (1, tokens, width)."""
        q, k = (self._rotate(self._heads(x, attention)) for x in (q, k))
        return self._cached(q, k, self._heads(v, attention), attention)

    def _cached(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """Rotated queries over the cache with the new keys and values, each (1, tokens, heads, head_dim)."""
        dims = (1, self._context, attention.kv_heads, attention.head_dim)
        caches = Cache(dims), Cache(dims)
        for new, cache in zip((k, v), caches, strict=True):
            self._kernel("llama::update_cache.out", [new, cache, self._start], (1,))
        default = attention.scale == attention.head_dim**-0.5
        arguments = [q, *caches, self._start, None, 0.0, True, None if default else attention.scale]
        mixed = self._kernel("llama::custom_sdpa.out", arguments, q.dims)
        return self._reshape(mixed, (1, TOKENS, attention.query_width))

    def _form(self, name: str) -> tuple[str, int | None, bool]:
        """What must agree for weights to be one."""
        weight = self._weights[name]
        group = weight.group if isinstance(weight, QuantizedTensor) else None
        return _datatype(weight), group, bias_of(self._weights, name) is None

    def _heads(self, x: Tensor, attention: Attention) -> Tensor:
        return self._reshape(x, (1, TOKENS, x.dims[-1] // attention.head_dim, attention.head_dim))

    def _reshape(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """XNNPACK too writes 0 for the one dimension that follows from the others."""
        return self._xnn("XNNStaticReshape", {"input_id": x}, dims, num_dims=len(dims), new_shape=list(dims))

    def _slice(self, x: Tensor, axis: int, start: int, size: int) -> Tensor:
        """XNNPACK takes size 0 for: all of it."""
        offsets, sizes = [0] * len(x.dims), [0] * len(x.dims)
        offsets[axis], sizes[axis] = start, size
        dims = (*x.dims[:axis], size, *x.dims[axis + 1 :])
        return self._xnn("XNNStaticSlice", {"input_id": x}, dims, num_dims=len(dims), offsets=offsets, sizes=sizes)

    def _rotate(self, x: Tensor) -> Tensor:
        """x * (cos, cos) + (second half, first half) * (-sin, sin)."""
        half = x.dims[-1] // 2
        halves = {"input1_id": self._slice(x, 3, half, half), "input2_id": self._slice(x, 3, 0, half)}
        swapped = self._xnn("XNNConcatenate2", halves, x.dims, axis=3)
        along = self._binary("XNNMultiply", x, self._cosines)
        return self._binary("XNNAdd", along, self._binary("XNNMultiply", swapped, self._sines))

    def gated(self, gate_up: Value, activation: str) -> Value:
        """See Ops."""
        assert isinstance(gate_up, Product)
        assert activation == "silu", activation
        gate, up = (self._multiply(gate_up.x, (name,)) for name in gate_up.names)
        return self.gate(gate, up)

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up for two tensors; XNNPACK has no silu of its own."""
        return self._binary("XNNMultiply", self._binary("XNNMultiply", gate, self._unary("XNNSigmoid", gate)), up)

    def last_token(self, x: Value) -> Value:
        """See Ops."""
        x = self.compute(x)
        if self._every_token:
            return x
        dims = (1, 1, x.dims[-1])
        return self._kernel("aten::slice_copy.Tensor_out", [x, 1, -1, _TO_THE_END, 1], dims)


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
