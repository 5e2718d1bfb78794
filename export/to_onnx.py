"""The ONNX target: the decoder written directly as a graph of ONNX Runtime's fused operators. No torch, no tracing.

The graph follows the conventions of onnxruntime-genai (names of inputs and outputs, attention mask, shared cache
buffer), so that the folder loads there unchanged. Operators of the domain com.microsoft are specified in ONNX
Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ..errors import InputError
from ..quantize.cache import FP32, CacheFormat
from ..quantize.recipe import Format
from ..quantize.store import Dense, Weights, bias_of, pack_int4
from ..quantize.tensor import QuantizedTensor
from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import decoder, every_expert, fused_name, qk_norm_names, router_name
from .onnx_attention import AttentionWriter
from .onnx_experts import fits_qmoe, write_qmoe
from .onnx_file import MICROSOFT, OnnxFile, value_info
from .shapes import tensor_shapes

# MatMulNBits computes 4: int8 activations, scaled per block of weights; 0: fp32 activations.
SHIPPED_ACCURACY = 4
_LARGEST_BLOCK = 128
_SMALLEST_BLOCK = 16
_HEAD_MULTIPLE = 16


def write_onnx(folder: Path, config: ModelConfig, weights: Weights, context: int, cache: CacheFormat = FP32) -> None:
    """Write ``folder``/model.onnx and model.onnx.data for up to ``context`` tokens.

    Quantised weights keep their codes and scales bit for bit, and so do the scales of a cache that has some. Raises
    InputError for a shape that ONNX Runtime's operators cannot take.
    """
    file = OnnxFile(folder)
    try:
        ops = OnnxOps(file, weights, config, context, cache)
        file.node("Identity", [decoder(ops, config, "input_ids")], ["logits"])
        ops.save()
    finally:
        file.close()


def check_onnx(config: ModelConfig, formats: Mapping[str, Format]) -> None:
    """Raise InputError for a shape that ONNX Runtime's operators cannot take; ``formats`` are those of the matrices."""
    for layer in config.layers:
        if layer.attention.head_dim % _HEAD_MULTIPLE:
            raise InputError(
                f"ONNX Runtime's attention needs heads of a multiple of {_HEAD_MULTIPLE} columns, these have "
                f"{layer.attention.head_dim}; export to another target with --to"
            )
    shapes = tensor_shapes(config)
    for name, form in formats.items():
        columns = shapes[name][1]
        if form.bits == 8 and _block(columns, form.group or columns) < _SMALLEST_BLOCK:
            raise InputError(
                f"{name}: ONNX Runtime's 8 bits need a multiple of {_SMALLEST_BLOCK} columns, it has {columns}; "
                'override it with { kind = "fp16" } in a recipe'
            )


def block_of(weight: QuantizedTensor) -> int:
    """Columns per block in MatMulNBits: the group, or the largest power of two that divides a whole row.

    ONNX Runtime wants a power of two of at least 16; a row's one scale is then repeated for each of its blocks.
    """
    return _block(weight.shape[1], weight.group)


def _block(columns: int, group: int) -> int:
    if group != columns or columns in (16, 32, 64, 128):
        return group
    return min(columns & -columns, _LARGEST_BLOCK)


class OnnxOps:
    """Writes nodes; a value is the name of a tensor in the graph."""

    def __init__(
        self, file: OnnxFile, weights: Weights, config: ModelConfig, context: int, cache: CacheFormat = FP32
    ) -> None:
        self._file = file
        self._weights = weights
        self._config = config
        self._context = context
        self._tables: dict[str, str] = {}  # embedding table -> prefix of its initializers, for a tied head
        self._attention = AttentionWriter(file, context, cache)

    def embed(self, tokens: str, name: str) -> str:
        """See Ops."""
        table = self._weights[name]
        out = name.removesuffix(".weight")
        if isinstance(table, QuantizedTensor):
            return self._embed_quantized(tokens, name, table, out)
        self._tables[name] = self._file.tensor(name, table.shape, [table])
        self._file.node("Gather", [name, tokens], [out], axis=0)
        return out if table.dtype == np.float32 else self._to_float(out)

    def _embed_quantized(self, tokens: str, name: str, table: QuantizedTensor, out: str) -> str:
        """The table is laid out for the head's MatMulNBits; the gather sees the same bytes as a matrix."""
        block = block_of(table)
        if block < 16:
            raise InputError(f"{name}: ONNX Runtime needs a hidden size that 16 divides, it is {table.shape[1]}")
        prefix = self._write_codes((name,), [table])
        rows, columns = table.shape
        codes = self._file.alias(f"{prefix}.rows", f"{prefix}.codes", (rows, columns * table.bits // 8))
        self._tables[name] = prefix
        return self._file.node(
            "GatherBlockQuantized",
            [codes, tokens, f"{prefix}.scales"],
            [out],
            MICROSOFT,
            bits=table.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, x: str, names: tuple[str, ...]) -> str:
        """See Ops. Weights of the same format become one operator."""
        tensors = [self._weights[name] for name in names]
        if len({_format(tensor) for tensor in tensors}) > 1:
            parts = [self.linear(x, (name,)) for name in names]
            return self._file.node("Concat", parts, [f"{fused_name(names)}.output"], axis=-1)
        quantized = [tensor for tensor in tensors if isinstance(tensor, QuantizedTensor)]
        if quantized:
            return self._linear_quantized(x, names, quantized)
        return self._linear_dense(x, names, [tensor for tensor in tensors if not isinstance(tensor, QuantizedTensor)])

    def _linear_quantized(self, x: str, names: tuple[str, ...], tensors: list[QuantizedTensor]) -> str:
        block = block_of(tensors[0])
        prefix = self._tables.get(names[0]) or self._write_codes(names, tensors)
        bias = self._write_bias(names, [tensor.shape[0] for tensor in tensors])
        inputs = [x, f"{prefix}.codes", f"{prefix}.scales"] + (["", "", bias] if bias else [])
        return self._file.node(
            "MatMulNBits",
            inputs,
            [f"{fused_name(names)}.output"],
            MICROSOFT,
            K=tensors[0].shape[1],
            N=sum(tensor.shape[0] for tensor in tensors),
            bits=tensors[0].bits,
            block_size=block,
            accuracy_level=SHIPPED_ACCURACY,
        )

    def _write_codes(self, names: tuple[str, ...], tensors: list[QuantizedTensor]) -> str:
        """Codes and scales in MatMulNBits' layout, the rows of several weights below each other."""
        prefix = fused_name(names)
        rows, columns = sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1]
        block = block_of(tensors[0])
        blocks = -(-columns // block)
        width = block * tensors[0].bits // 8
        self._file.tensor(f"{prefix}.codes", (rows, blocks, width), (packed_codes(t, block) for t in tensors))
        self._file.tensor(f"{prefix}.scales", (rows, blocks), (_block_scales(t, blocks) for t in tensors))
        return prefix

    def _linear_dense(self, x: str, names: tuple[str, ...], tensors: list[Dense]) -> str:
        """fp32, or fp16 that is widened when the model is loaded: ONNX Runtime's CPU kernels compute in fp32."""
        prefix = fused_name(names)
        shape = (sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1])
        weight = self._tables.get(names[0]) or self._file.tensor(f"{prefix}.weight", shape, tensors)
        if tensors[0].dtype != np.float32:
            weight = self._to_float(weight)
        out = self._file.node(
            "FusedMatMul", [x, weight], [f"{prefix}.output"], MICROSOFT, transA=0, transB=1, alpha=1.0
        )
        bias = self._write_bias(names, [tensor.shape[0] for tensor in tensors])
        return self._file.node("Add", [out, bias], [f"{prefix}.biased"]) if bias else out

    def _to_float(self, value: str) -> str:
        return self._file.node("Cast", [value], [f"{value}.fp32"], to=TensorProto.FLOAT)

    def _write_bias(self, names: tuple[str, ...], rows: list[int]) -> str | None:
        """The biases of fused weights below each other, zeros where one has none; None if none has."""
        biases = [bias_of(self._weights, name) for name in names]
        if all(bias is None for bias in biases):
            return None
        parts = [
            np.zeros(count, np.float32) if bias is None else bias.astype(np.float32)
            for bias, count in zip(biases, rows, strict=True)
        ]
        return self._file.tensor(f"{fused_name(names)}.bias", (sum(rows),), parts)

    def _dense(self, name: str) -> Dense:
        weight = self._weights[name]
        assert not isinstance(weight, QuantizedTensor), f"{name} is never quantised"
        return weight

    def _norm_weight(self, name: str) -> str:
        weight = self._dense(name)
        return self._file.tensor(name, weight.shape, [weight.astype(np.float32)])

    def rms_norm(self, x: str, name: str, epsilon: float) -> str:
        """See Ops."""
        return self._file.node(
            "SimplifiedLayerNormalization",
            [x, self._norm_weight(name)],
            [name.removesuffix(".weight")],
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
        )

    def add_norm(self, x: str, residual: str, name: str, epsilon: float) -> tuple[str, str]:
        """See Ops."""
        normed = name.removesuffix(".weight")
        outputs = [normed, "", "", f"{normed}.residual"]
        self._file.node(
            "SkipSimplifiedLayerNormalization",
            [residual, x, self._norm_weight(name)],
            outputs,
            MICROSOFT,
            epsilon=epsilon,
        )
        return normed, outputs[3]

    def layer_norm(self, x: str, name: str, epsilon: float) -> str:
        """See Ops."""
        weights = [self._norm_weight(name), self._norm_weight(name.removesuffix("weight") + "bias")]
        out = name.removesuffix(".weight")
        return self._file.node("LayerNormalization", [x, *weights], [out], axis=-1, epsilon=epsilon, stash_type=1)

    def add(self, x: str, y: str, name: str) -> str:
        """See Ops."""
        return self._file.node("Add", [x, y], [name])

    def _number(self, name: str, value: float) -> str:
        return self._file.small(name, np.array(value, np.float32))

    def scale(self, x: str, factor: float, name: str) -> str:
        """See Ops."""
        return self._file.node("Mul", [x, self._number(f"{name}.factor", factor)], [f"{name}.scaled"])

    def soft_cap(self, x: str, cap: float, name: str) -> str:
        """See Ops."""
        limit = self._number(f"{name}.cap", cap)
        divided = self._file.node("Div", [x, limit], [f"{name}.divided"])
        bent = self._file.node("Tanh", [divided], [f"{name}.bent"])
        return self._file.node("Mul", [bent, limit], [f"{name}.capped"])

    def add_positions(self, x: str, name: str) -> str:
        """See Ops. The new tokens are the last of those that attention_mask counts."""
        file, out = self._file, name.removesuffix(".weight")
        table = self._norm_weight(name)
        file.node("Shape", ["input_ids"], [f"{out}.shape"])
        file.node("Gather", [f"{out}.shape", "axis_1"], [f"{out}.count"], axis=0)  # (1,)
        file.node("Gather", ["mask.shape", "axis_1"], [f"{out}.end"], axis=0)
        file.node("Sub", [f"{out}.end", f"{out}.count"], [f"{out}.begin"])
        file.small(f"{out}.axis", np.array([0], np.int64))
        file.node("Slice", [table, f"{out}.begin", f"{out}.end", f"{out}.axis"], [f"{out}.rows"])
        return file.node("Add", [x, f"{out}.rows"], [out])

    def attention(self, qkv: str, layer: int, attention: Attention) -> str:
        """See Ops."""
        if attention.qk_norm is None:
            return self._attention.write(qkv, layer, attention, None, self._weights)
        query, key = (self._dense(name) for name in qk_norm_names(layer))
        return self._attention.write(qkv, layer, attention, (query, key), self._weights)

    def gated(self, gate_up: str, activation: str) -> str:
        """See Ops."""
        prefix = gate_up.removesuffix(".output").removesuffix(".biased")
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        self._file.node("Split", [gate_up], [gate, up], axis=-1, num_outputs=2)
        return self._file.node("Mul", [self._activated(gate, activation, prefix), up], [f"{prefix}.gated"])

    def activate(self, x: str, activation: str) -> str:
        """See Ops."""
        return self._activated(x, activation, x.removesuffix(".output").removesuffix(".biased"))

    def _activated(self, x: str, activation: str, prefix: str) -> str:
        """QuickGelu with alpha 1 is x * sigmoid(x), that is SiLU."""
        out = f"{prefix}.activated"
        if activation == "silu":
            return self._file.node("QuickGelu", [x], [out], MICROSOFT, alpha=1.0)
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[activation]
        return self._file.node("Gelu", [x], [out], approximate=approximate)

    def experts(self, x: str, layer: int, mlp: Mlp) -> str:
        """See Ops."""
        if not fits_qmoe(self._weights, layer, mlp):
            return every_expert(self, x, layer, mlp)
        logits = self.linear(x, (router_name(layer),))
        return write_qmoe(self._file, self._weights, x, logits, layer, mlp, SHIPPED_ACCURACY)

    def route(self, logits: str, layer: int, experts: Experts) -> str:
        """See Ops."""
        file, prefix = self._file, f"model.layers.{layer}.mlp.router"
        file.small(f"{prefix}.active", np.array([experts.active], np.int64))
        shares = file.node("Softmax", [logits], [f"{prefix}.shares"], axis=-1)
        values = f"{prefix}.values"
        file.node("TopK", [shares, f"{prefix}.active"], [values, f"{prefix}.chosen"], axis=-1)
        if experts.renormalise:
            file.node("ReduceSum", [values, "last_index"], [f"{prefix}.sum"], keepdims=1)
            values = file.node("Div", [values, f"{prefix}.sum"], [f"{prefix}.normed"])
        file.node("Shape", [logits], [f"{prefix}.shape"])
        nothing = file.node("ConstantOfShape", [f"{prefix}.shape"], [f"{prefix}.nothing"])
        return file.node("ScatterElements", [nothing, f"{prefix}.chosen", values], [f"{prefix}.weights"], axis=-1)

    def weigh(self, x: str, weights: str, layer: int, expert: int) -> str:
        """See Ops."""
        prefix = f"model.layers.{layer}.mlp.experts.{expert}"
        self._file.small(f"{prefix}.index", np.array([expert], np.int64))
        share = self._file.node("Gather", [weights, f"{prefix}.index"], [f"{prefix}.share"], axis=-1)
        return self._file.node("Mul", [x, share], [f"{prefix}.weighed"])

    def last_token(self, x: str) -> str:
        """See Ops. Verification takes these nodes out again to see the logits of every token."""
        return self._file.node("Gather", [x, "last_index"], [f"{x}.last_token"], axis=1)

    def save(self) -> None:
        """Write the graph with its inputs and outputs."""
        cache_inputs, cache_outputs = self._attention.caches()
        inputs = [
            value_info("input_ids", TensorProto.INT64, [1, "tokens"]),
            value_info("attention_mask", TensorProto.INT64, [1, "tokens_so_far"]),
            *cache_inputs,
        ]
        logits = value_info("logits", TensorProto.FLOAT, [1, 1, self._config.vocab_size])
        self._file.save(inputs, [logits, *cache_outputs], {"context": str(self._context)})


def _format(tensor: QuantizedTensor | Dense) -> tuple[object, ...]:
    """Weights with equal values of this can be one operator."""
    return (tensor.bits, tensor.group) if isinstance(tensor, QuantizedTensor) else (tensor.dtype,)


def packed_codes(tensor: QuantizedTensor, block: int) -> NDArray[np.uint8]:
    """Unsigned codes as MatMulNBits has them: (out, in * bits / 8), code + 8 (even column low) or code + 128."""
    if tensor.bits == 4:
        return pack_int4(tensor.codes)
    shifted = tensor.codes.view(np.uint8) ^ np.uint8(128)
    padding = -shifted.shape[1] % block
    return np.pad(shifted, ((0, 0), (0, padding)), constant_values=128) if padding else shifted


def _block_scales(tensor: QuantizedTensor, blocks: int) -> NDArray[np.float32]:
    """Scales (out, blocks): the groups' own, or a row's one scale for each of its blocks."""
    scales = tensor.scales
    return scales if scales.shape[1] == blocks else np.repeat(scales, blocks, axis=1)
