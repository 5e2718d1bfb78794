"""Attention as ONNX Runtime's GroupQueryAttention, with what lies between the projection and it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from ..quantize.cache import PARTS, CacheFormat, cache_scales, scale_name
from ..quantize.store import Dense, Weights
from .config import Attention
from .decoder import qk_norm_names
from .onnx_file import MICROSOFT, OnnxFile, value_info
from .rope import Rope, rotary_tables

_SCALES_AT = 12  # the place of the keys' scales among the operator's inputs; those of the values follow


class AttentionWriter:
    """Writes the attention of each layer; tables of rotations are shared by layers that rotate alike."""

    def __init__(self, file: OnnxFile, context: int, cache: CacheFormat) -> None:
        self._file = file
        self._context = context
        self._cache = cache
        self._tables: dict[tuple[Rope, int], list[str]] = {}
        self._shapes: dict[int, Attention] = {}
        self._write_lengths()

    def _write_lengths(self) -> None:
        """From attention_mask (1, tokens so far): what GroupQueryAttention wants to know about lengths."""
        file = self._file
        file.small("axis_1", np.array([1], np.int64))
        file.small("one", np.array(1, np.int64))
        file.small("last_index", np.array([-1], np.int64))
        file.node("ReduceSum", ["attention_mask", "axis_1"], ["mask.sum"], keepdims=1)
        file.node("Sub", ["mask.sum", "one"], ["mask.last"])
        file.node("Cast", ["mask.last"], ["seqlens_k"], to=TensorProto.INT32)
        file.node("Shape", ["attention_mask"], ["mask.shape"])
        file.node("Gather", ["mask.shape", "one"], ["mask.length"], axis=0)
        file.node("Cast", ["mask.length"], ["total_sequence_length"], to=TensorProto.INT32)

    def rotary(self, attention: Attention) -> list[str]:
        """The names of the cosines and sines, each (context, head_dim / 2); empty for a layer without positions."""
        if attention.rope is None:
            return []
        key = attention.rope, attention.head_dim
        if key not in self._tables:
            which = f".{len(self._tables)}" if self._tables else ""
            tables = rotary_tables(attention.rope, attention.head_dim, self._context)
            self._tables[key] = [
                self._file.tensor(f"rotary{which}.{name}", table.shape, [table])
                for name, table in zip(("cosines", "sines"), tables, strict=True)
            ]
        return self._tables[key]

    def write(
        self, qkv: str, layer: int, attention: Attention, norms: tuple[Dense, Dense] | None, weights: Weights
    ) -> str:
        """The mixed values (1, tokens, query_width). The cache is an input and an output of the graph.

        A caller binds both to one buffer. ``norms``: the weights of the norms of queries and keys; ``weights`` has the
        scales of the cache, if it is one with scales.
        """
        out = f"model.layers.{layer}.self_attn"
        past, present = f"past_key_values.{layer}", f"present.{layer}"
        self._shapes[layer] = attention
        parts = [qkv, "", ""] if norms is None else self._normed(qkv, layer, attention, norms)
        rotary = self.rotary(attention)
        scales, quantised = self._quantised(layer, attention, weights)
        inputs = [*parts, f"{past}.key", f"{past}.value", "seqlens_k", "total_sequence_length", *rotary]
        if scales:
            inputs += [""] * (_SCALES_AT - len(inputs)) + scales
        return self._file.node(
            "GroupQueryAttention",
            inputs,
            [out, f"{present}.key", f"{present}.value"],
            MICROSOFT,
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            scale=attention.scale,
            do_rotary=int(bool(rotary)),
            rotary_interleaved=0,
            local_window_size=-1 if attention.window is None else attention.window,
            softcap=attention.softcap or 0.0,
            **quantised,
        )

    def _quantised(self, layer: int, attention: Attention, weights: Weights) -> tuple[list[str], dict[str, str | int]]:
        """The inputs and attributes by which the operator keeps int8 in its cache; none for a cache of floats."""
        if not self._cache.static_scales:
            return [], {}
        shape = 1, attention.kv_heads, 1, attention.head_dim
        names = [
            self._file.tensor(scale_name(layer, part), shape, [cache_scales(weights, layer, part)]) for part in PARTS
        ]
        return names, {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}

    def _normed(self, qkv: str, layer: int, attention: Attention, norms: tuple[Dense, Dense]) -> list[str]:
        """Queries, keys and values apart, the first two normed."""
        assert attention.qk_norm is not None
        file, prefix = self._file, f"model.layers.{layer}.self_attn"
        widths = np.array([attention.query_width, attention.kv_width, attention.kv_width], np.int64)
        file.small(f"{prefix}.widths", widths)
        parts = [f"{prefix}.{part}" for part in ("queries", "keys", "values")]
        file.node("Split", [qkv, f"{prefix}.widths"], parts, axis=-1)
        normed = []
        for part, name, weight in zip(parts, qk_norm_names(layer), norms, strict=False):
            stem = name.removesuffix(".weight")
            file.tensor(name, weight.shape, [weight.astype(np.float32)])
            x = self._reshaped(part, [0, 0, -1, attention.head_dim], "heads") if attention.qk_norm.per_head else part
            x = file.node(
                "SimplifiedLayerNormalization", [x, name], [stem], axis=-1, epsilon=attention.qk_norm.epsilon,
                stash_type=1,
            )  # fmt: skip
            normed.append(self._reshaped(x, [0, 0, -1], "row") if attention.qk_norm.per_head else x)
        return [*normed, parts[2]]

    def _reshaped(self, x: str, shape: list[int], name: str) -> str:
        """In a shape with 0 for sizes that stay."""
        self._file.small(f"{x}.{name}.shape", np.array(shape, np.int64))
        return self._file.node("Reshape", [x, f"{x}.{name}.shape"], [f"{x}.{name}"])

    def caches(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        """The graph's inputs and outputs for all caches, in the order of layers."""
        inputs, outputs = [], []
        dtype = TensorProto.FLOAT if self._cache.is_float else TensorProto.INT8
        for layer, attention in sorted(self._shapes.items()):
            for part in ("key", "value"):
                shape: list[int | str] = [1, attention.kv_heads, "cache", attention.head_dim]
                inputs.append(value_info(f"past_key_values.{layer}.{part}", dtype, shape))
                outputs.append(value_info(f"present.{layer}.{part}", dtype, shape))
        return inputs, outputs
