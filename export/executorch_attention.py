"""Attention for ExecuTorch: its kernel over the cache, and XNNPACK's operations where that kernel cannot do it."""

from __future__ import annotations

import numpy as np

from .config import Attention
from .executorch_builder import Builder
from .executorch_graph import TOKENS, Argument, Cache, Kernel, Scalar, Tensor
from .rope import Rope, rotary_tables

# Added to the score of a token that must not be seen, once for each place it is outside.
HIDDEN = -1e9
INT8, INT8_RANGE = 1, (-128, 127)  # ScalarType::Char


class AttentionWriter:
    """Writes rotation, cache and attention. Tables and masks are shared by layers that need the same ones.

    int8_cache  keep keys and values as int8, and attend by ExecuTorch's kernel for those
    """

    def __init__(
        self, builder: Builder, tokens: Tensor, position: Tensor, context: int, int8_cache: bool = False
    ) -> None:
        self._builder = builder
        self._context = context
        self._int8_cache = int8_cache
        self._tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}
        self._start, count, self._end = Scalar(), Scalar(), Scalar()
        builder.nodes += [
            Kernel("aten::_local_scalar_dense.", (position,), self._start, repeat_output=False),
            Kernel("aten::sym_size.int", (tokens, 1), count, repeat_output=False),
            Kernel("executorch_prim::add.Scalar", (self._start, count), self._end, repeat_output=False),
        ]

    def rows(self, table: np.ndarray) -> Tensor:
        """The rows of a table (context, ...) for this call's tokens."""
        arguments: list[Argument] = [self._builder.array(table), 0, self._start, self._end, 1]
        return self._builder.kernel("aten::slice_copy.Tensor_out", arguments, (TOKENS, *table.shape[1:]))

    def heads(self, x: Tensor, attention: Attention) -> Tensor:
        """(1, tokens, width) -> (1, tokens, heads, head_dim)."""
        return self._builder.reshape(x, (1, TOKENS, x.dims[-1] // attention.head_dim, attention.head_dim))

    def rotate(self, x: Tensor, attention: Attention) -> Tensor:
        """x * (cos, cos) + (second half, first half) * (-sin, sin), for x (1, tokens, heads, head_dim)."""
        if attention.rope is None:
            return x
        builder, half = self._builder, x.dims[-1] // 2
        cosines, sines = self._rotary(attention.rope, attention.head_dim)
        halves = {"input1_id": builder.slice(x, 3, half, half), "input2_id": builder.slice(x, 3, 0, half)}
        swapped = builder.xnn("XNNConcatenate2", halves, x.dims, axis=3)
        along = builder.binary("XNNMultiply", x, cosines)
        return builder.binary("XNNAdd", along, builder.binary("XNNMultiply", swapped, sines))

    def _rotary(self, rope: Rope, head_dim: int) -> tuple[Tensor, Tensor]:
        """This call's rows of the rotary tables, each (tokens, 1, head_dim)."""
        if (rope, head_dim) not in self._tables:
            cosines, sines = rotary_tables(rope, head_dim, self._context)
            tables = np.concatenate([cosines, cosines], 1), np.concatenate([-sines, sines], 1)
            first, second = (self.rows(table[:, None]) for table in tables)
            self._tables[rope, head_dim] = first, second
        return self._tables[rope, head_dim]

    def cached(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """Queries over the cache with the new keys and values, each (1, tokens, heads, head_dim).

        The caches are (1, context, kv heads, head_dim), as the kernels read them. Without a mask they look at the
        tokens so far; with one, at the whole cache.
        """
        if attention.softcap is not None:
            keys, values = self._write(k), self._write(v)
            mixed = self._capped(q, keys, values, attention, attention.softcap)
        elif self._int8_cache:
            mixed = self._attend_quantized(q, k, v, attention)
        else:
            arguments = [q, self._write(k), self._write(v), self._start, *self._masked(attention)]
            mixed = self._builder.kernel("llama::custom_sdpa.out", arguments, q.dims)
        return self._builder.reshape(mixed, (1, TOKENS, attention.query_width))

    def _masked(self, attention: Attention) -> list[Argument]:
        """What both attention kernels take behind the position: mask, dropout, whether causal, scale."""
        mask = None if attention.window is None else self.mask(attention.window)
        default = attention.scale == attention.head_dim**-0.5
        return [mask, 0.0, mask is None, None if default else attention.scale]

    def _write(self, new: Tensor) -> Cache:
        """A cache (1, context, ...) with the new rows (1, tokens, ...) at their places."""
        cache = Cache((1, self._context, *new.dims[2:]), new.dtype)
        self._builder.kernel("llama::update_cache.out", [new, cache, self._start], (1,))
        return cache

    def _attend_quantized(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """Over int8 caches, by the kernel that multiplies int8 queries with int8 keys."""
        codes, *ranges = self._quantize(q)
        held = [self._write(part) for new in (k, v) for part in self._quantize(new)]
        arguments: list[Argument] = [codes, held[0], held[3], self._start, *self._masked(attention)]
        arguments += [*ranges, *held[1:3], *held[4:6], False]
        return self._builder.kernel("llama::custom_quantized_sdpa.out", arguments, q.dims)

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of x (1, tokens, heads, head_dim) in int8; zero point and scale of each head of a token.

        The kernel that finds the ranges gives other types than the one that attends takes.
        """
        builder, dims = self._builder, (*x.dims[:-1], 1)
        scales, zeros = Tensor(dims, "float64"), Tensor(dims, "int64")
        choose = "quantized_decomposed::choose_qparams_per_token_asymmetric.out"
        builder.nodes.append(Kernel(choose, (x, INT8), scales, second_output=zeros))
        arguments: list[Argument] = [x, scales, zeros, *INT8_RANGE, INT8]
        codes = builder.kernel("quantized_decomposed::quantize_per_token.out", arguments, x.dims, "int8")
        narrow_zeros = builder.kernel("aten::_to_copy.out", [zeros, False, None], dims, "int8")
        return codes, narrow_zeros, builder.kernel("aten::_to_copy.out", [scales, False, None], dims)

    def mask(self, window: int) -> Tensor:
        """0 where a token may look and at most HIDDEN elsewhere, (tokens, context).

        A token may look at what is at most window - 1 places before it: at |other - own + m| <= m, m half of that.
        """
        if window not in self._masks:
            builder, half = self._builder, (window - 1) / 2
            places = np.arange(self._context, dtype=np.float32)
            own = self.rows(places[:, None])
            other = builder.array(places[None])
            ahead = builder.binary("XNNSubtract", other, own, (TOKENS, self._context))
            away = builder.unary("XNNAbs", builder.number("XNNAdd", ahead, half))
            outside = builder.number("XNNMaximum", builder.number("XNNSubtract", away, half), 0.0)
            self._masks[window] = builder.number("XNNMultiply", outside, HIDDEN)
        return self._masks[window]

    def _capped(self, q: Tensor, keys: Cache, values: Cache, attention: Attention, cap: float) -> Tensor:
        """The same with scores bent by tanh, which the kernel lacks, over the whole cache.

        Queries that share keys lie side by side: (kv heads, sharing, tokens, ...).
        """
        builder, kv_heads, width = self._builder, attention.kv_heads, attention.head_dim
        sharing = attention.heads // kv_heads
        asked = builder.reshape(builder.transpose(q, (0, 2, 1, 3)), (kv_heads, sharing, TOKENS, width))
        turned = builder.reshape(builder.transpose(keys, (0, 2, 3, 1)), (kv_heads, 1, width, self._context))
        held = builder.reshape(builder.transpose(values, (0, 2, 1, 3)), (kv_heads, 1, self._context, width))
        dims = (kv_heads, sharing, TOKENS, self._context)
        scores = builder.binary("XNNBatchMatrixMultiply", asked, turned, dims)
        scores = builder.number("XNNMultiply", scores, attention.scale)
        bent = builder.unary("XNNTanh", builder.number("XNNDiv", scores, cap))
        scores = builder.number("XNNMultiply", bent, cap)
        scores = builder.binary("XNNAdd", scores, self.mask(attention.window or self._context))
        shares = builder.unary("XNNSoftmax", scores)
        mixed = builder.binary("XNNBatchMatrixMultiply", shares, held, (kv_heads, sharing, TOKENS, width))
        return builder.transpose(builder.reshape(mixed, (1, attention.heads, TOKENS, width)), (0, 2, 1, 3))
