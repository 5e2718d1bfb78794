"""Attention in a finished .pte: its rotary tables, masks, caches and parameters, found and checked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..export.config import Attention
from ..export.executorch_attention import HIDDEN, INT8, INT8_RANGE
from ..export.rope import Rope, rotary_tables
from ..quantize.cache import FP32, INT8_HEAD, CacheFormat
from .pte_flow import ANY, Operation, PteFlow

_RANGES = "quantized_decomposed::choose_qparams_per_token_asymmetric"


class PteAttention:
    """Finds what ``export.executorch_attention`` writes; the values are names of values in the file."""

    def __init__(self, flow: PteFlow) -> None:
        inputs = flow.pte.plan["inputs"]
        if len(inputs) != 2:
            raise flow.error("forward", f"it takes {len(inputs)} inputs instead of tokens and a position")
        self._flow = flow
        self.tokens: Hashable = inputs[0]
        self._start = flow.take("aten::_local_scalar_dense", (inputs[1],), "position").output
        count = flow.take("aten::sym_size", (self.tokens,), "number of tokens").output
        self._end = flow.take("executorch_prim::add", (self._start, count), "position").output
        self._tables: dict[tuple[Rope, int], list[Hashable]] = {}
        self._masks: dict[int, Hashable] = {}
        self._caches: set[Hashable] = set()
        self.constants: dict[str, float] = {}
        self.formats: list[CacheFormat] = []  # of each layer's cache

    def constant(self, value: Hashable) -> NDArray[np.generic]:
        """A constant of the program."""
        assert isinstance(value, int), value
        return self._flow.pte.constant(value)

    def number(self, op: str, x: Hashable, what: str) -> tuple[Hashable, float]:
        """What an operation of x and a number gives, and the number."""
        found = self._flow.take(op, (x,), what)
        values = self.constant(found.inputs[1]).reshape(-1)
        if values.size != 1:
            raise self._flow.error(what, f"{op.removeprefix('XNN')} takes {values.size} numbers instead of one")
        return found.output, float(values[0])

    def expected(self, op: str, x: Hashable, value: float, what: str) -> Hashable:
        """The same where the number must be this one."""
        output, found = self.number(op, x, what)
        if np.float32(found) != np.float32(value):
            raise self._flow.error(what, f"{op.removeprefix('XNN')} by {found:.9g} instead of {value:.9g}")
        return output

    def rows(self, what: str) -> tuple[Hashable, Hashable]:
        """This call's rows of the next table, and the table."""
        found = self._flow.take("aten::slice_copy", (ANY, ANY, self._start, self._end), what)
        if self._flow.number(found.inputs[1]) != 0:
            raise self._flow.error(what, "it is cut along another axis than its rows")
        return found.output, found.inputs[0]

    def rotate(self, x: Hashable, attention: Attention, what: str) -> Hashable:
        """See ``AttentionWriter.rotate``."""
        if attention.rope is None:
            return x
        cosines, sines = self._rotary(attention.rope, attention.head_dim)
        half = attention.head_dim // 2
        halves = self.sliced(x, 3, half, half, what), self.sliced(x, 3, 0, half, what)
        swapped = self._flow.take("XNNConcatenate2", halves, what, lambda found: found.node["axis"] == 3).output
        along = self._flow.take("XNNMultiply", (x, cosines), what).output
        across = self._flow.take("XNNMultiply", (swapped, sines), what).output
        return self._flow.take("XNNAdd", (along, across), what).output

    def _rotary(self, rope: Rope, head_dim: int) -> list[Hashable]:
        key = rope, head_dim
        if key not in self._tables:
            found = [self.rows("rotary table") for _ in range(2)]
            tables = [self.constant(table) for _, table in found]
            cosines, sines = rotary_tables(rope, head_dim, tables[0].shape[0])
            wanted = np.concatenate([cosines, cosines], 1), np.concatenate([-sines, sines], 1)
            for name, left, right in zip(("cosines", "sines"), tables, wanted, strict=True):
                if left.size != right.size or not np.array_equal(left.reshape(right.shape), right):
                    raise self._flow.error(f"rotary {name}", "the table differs from the model's")
            self._tables[key] = [rows for rows, _ in found]
        return self._tables[key]

    def cached(self, q: Hashable, k: Hashable, v: Hashable, layer: int, attention: Attention) -> Hashable:
        """The mixed values, (1, tokens, query_width); see ``AttentionWriter.cached``."""
        flow, what = self._flow, f"model.layers.{layer}.self_attn"
        ranges = flow.find(_RANGES, (q,))
        self.formats.append(FP32 if ranges is None else INT8_HEAD)
        self.constants[f"{what}:rotary tables"] = attention.rope is not None  # or ``rotate`` would have complained
        if ranges is not None:
            others = [flow.take(_RANGES, (x,), f"{what}: int8") for x in (k, v)]
            mixed = self._over_int8([self._quantized(found, what) for found in (ranges, *others)], what, attention)
        else:
            caches, written = self._written((k, v), what)
            if attention.softcap is None:
                mixed = self._kernel("llama::custom_sdpa", [q, *caches], [], written, what, attention)
            else:
                mixed = self._capped(q, caches, written, what, attention)
        return self.reshaped(mixed, [1, 0, attention.query_width], what)

    def _written(self, new: Sequence[Hashable], what: str) -> tuple[list[Hashable], int]:
        """The caches that get these values, and where in the program the last one does."""
        flow = self._flow
        writes = [flow.take("llama::update_cache", (value, ANY, self._start), f"{what}: cache") for value in new]
        caches = [write.inputs[1] for write in writes]
        if len(self._caches.union(caches)) != len(self._caches) + len(caches):
            raise flow.error(what, "its cache belongs to another layer too")
        self._caches.update(caches)
        return caches, max(write.order for write in writes)

    def _quantized(self, ranges: Operation, what: str) -> list[Hashable]:
        """Codes, zero points and scales of heads whose ranges are these; see ``AttentionWriter._quantize``."""
        flow, (x, dtype, scales, zeros) = self._flow, ranges.inputs[:4]
        found = flow.take("quantized_decomposed::quantize_per_token", (x, scales, zeros), f"{what}: int8")
        numbers = [flow.number(value) for value in (dtype, *found.inputs[3:6])]
        if numbers != [INT8, *INT8_RANGE, INT8]:
            raise flow.error(what, f"its int8 codes are made by {numbers}")
        copies = [flow.take("aten::_to_copy", (value,), f"{what}: int8").output for value in (zeros, scales)]
        return [found.output, *copies]

    def _over_int8(self, heads: list[list[Hashable]], what: str, attention: Attention) -> Hashable:
        """Attention of int8 queries over int8 caches; see ``AttentionWriter._attend_quantized``."""
        (q, *parameters), keys, values = heads
        caches, written = self._written((*keys, *values), what)
        parameters += [*caches[1:3], *caches[4:6]]
        return self._kernel(
            "llama::custom_quantized_sdpa", [q, caches[0], caches[3]], parameters, written, what, attention
        )

    def _kernel(
        self,
        op: str,
        heads: list[Hashable],
        parameters: list[Hashable],
        written: int,
        what: str,
        attention: Attention,
    ) -> Hashable:
        """Attention by a kernel: causal, or with the mask of a window. ``parameters``: zero points and scales."""
        flow, window, caches = self._flow, attention.window, heads[1:]
        mask = None if window is None else self._mask(window, caches[0], what)
        attend = flow.take(op, (*heads, self._start), what)
        self._check_order(attend, written, what)
        causal, scale = bool(flow.number(attend.inputs[6])), flow.number(attend.inputs[7])
        unmasked = flow.is_null(attend.inputs[4])
        if causal is not (mask is None) or (not unmasked if mask is None else attend.inputs[4] != mask):
            raise flow.error(what, "its attention is not causal" if mask is None else "it has another mask")
        if parameters and (list(attend.inputs[8:14]) != parameters or flow.number(attend.inputs[14])):
            raise flow.error(what, "it reads its int8 cache by scales or zero points of something else")
        _, _, count, head_dim = flow.dims(attend.inputs[0])
        self._note(what, count, caches, head_dim**-0.5 if scale is None else scale, window, 0.0)
        return attend.output

    def _check_order(self, reads: Operation, written: int, what: str) -> None:
        if reads.order < written:
            raise self._flow.error(what, "it reads the cache before the new keys and values are in it")

    def _note(
        self, what: str, heads: int, caches: list[Hashable], scale: float, window: int | None, softcap: float
    ) -> None:
        self.constants |= {
            f"{what}:heads": heads,
            f"{what}:kv_heads": self._flow.dims(caches[0])[2],
            f"{what}:scale": scale,
            f"{what}:window": -1 if window is None else window,
            f"{what}:softcap": softcap,
        }

    def _capped(self, q: Hashable, caches: list[Hashable], written: int, what: str, attention: Attention) -> Hashable:
        """Attention written out; see ``AttentionWriter._capped``."""
        flow, kv_heads, width = self._flow, attention.kv_heads, attention.head_dim
        context, sharing = flow.dims(caches[0])[1], attention.heads // attention.kv_heads
        asked = self.reshaped(self._turned(q, [0, 2, 1, 3], what).output, [kv_heads, sharing, 0, width], what)
        turns = [
            self._turned(cache, order, what) for cache, order in zip(caches, ([0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        ]
        for turn in turns:
            self._check_order(turn, written, what)
        keys = self.reshaped(turns[0].output, [kv_heads, 1, width, context], what)
        values = self.reshaped(turns[1].output, [kv_heads, 1, context, width], what)
        scores = flow.take("XNNBatchMatrixMultiply", (asked, keys), what).output
        scores, scale = self.number("XNNMultiply", scores, what)
        capped, cap = self.capped(scores, what)
        window = attention.window
        scores = flow.take("XNNAdd", (capped, self._mask(window or context, caches[0], what)), what).output
        shares = flow.take("XNNSoftmax", (scores,), what).output
        mixed = flow.take("XNNBatchMatrixMultiply", (shares, values), what).output
        self._note(what, kv_heads * sharing, caches, scale, window, cap)
        mixed = self.reshaped(mixed, [1, attention.heads, 0, width], what)
        return self._turned(mixed, [0, 2, 1, 3], what).output

    def capped(self, x: Hashable, what: str) -> tuple[Hashable, float]:
        """tanh(x / cap) * cap, and the cap."""
        divided, cap = self.number("XNNDiv", x, what)
        bent = self._flow.take("XNNTanh", (divided,), what).output
        return self.expected("XNNMultiply", bent, cap, what), cap

    def _turned(self, x: Hashable, order: list[int], what: str) -> Operation:
        return self._flow.take("XNNStaticTranspose", (x,), what, lambda found: found.node["perm"] == order)

    def reshaped(self, x: Hashable, dims: list[int], what: str) -> Hashable:
        """x in another shape."""
        return self._flow.take("XNNStaticReshape", (x,), what, lambda found: found.node["new_shape"] == dims).output

    def sliced(self, x: Hashable, axis: int, start: int, size: int, what: str, rank: int = 4) -> Hashable:
        """A part of x along an axis."""
        offsets, sizes = [0] * rank, [0] * rank
        offsets[axis], sizes[axis] = start, size

        def fits(found: Operation) -> bool:
            return bool(found.node["offsets"] == offsets and found.node["sizes"] == sizes)

        return self._flow.take("XNNStaticSlice", (x,), what, fits).output

    def _mask(self, window: int, cache: Hashable, what: str) -> Hashable:
        """The mask of a window, whose numbers are checked when it is first met."""
        if window not in self._masks:
            flow, half, what = self._flow, (window - 1) / 2, f"{what}: mask of a window of {window}"
            own, places = self.rows(what)
            context = flow.dims(cache)[1]
            wanted = np.arange(context, dtype=np.float32)
            ahead = flow.take("XNNSubtract", (ANY, own), what)
            for table in (self.constant(places), self.constant(ahead.inputs[0])):
                if not np.array_equal(table.reshape(-1), wanted):
                    raise flow.error(what, "it does not count places")
            away = flow.take("XNNAbs", (self.expected("XNNAdd", ahead.output, half, what),), what).output
            outside = self.expected("XNNSubtract", away, half, what)
            outside = self.expected("XNNMaximum", outside, 0.0, what)
            self._masks[window] = self.expected("XNNMultiply", outside, HIDDEN, what)
        return self._masks[window]
