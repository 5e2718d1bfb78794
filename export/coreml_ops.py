"""The decoder as a Core ML program: every operation of the decoder written in MIL. No torch, no tracing.

Operators are those of coremltools.converters.mil.mil.ops.defs up to iOS 18. A value of the decoder is a tuple of MIL
variables that lie side by side in the last axis, so that the outputs of several linears need no concatenation that
the next operation would take apart again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (its own documentation's name)
from coremltools.converters.mil.mil import types

from ..errors import InputError
from ..quantize.store import bias_of
from . import apple
from .config import Attention, Experts, Mlp, ModelConfig
from .coreml_constants import Constants
from .decoder import every_expert, qk_norm_names
from .rope import Rope

Value = tuple[Any, ...]  # MIL variables (1, tokens, width)


class CoreMLOps:
    """Writes one function. To be used inside ``with Function(...)``: the builder writes into the current function.

    function  which entry point this is
    inputs    the function's inputs and states by name
    """

    def __init__(
        self, constants: Constants, config: ModelConfig, function: apple.Function, inputs: Mapping[str, Any]
    ) -> None:
        self._constants = constants
        self._function = function
        self._inputs = inputs
        self._kv_heads = apple.state_shape(config, constants.slots)[1]
        self._tokens = -1 if function.tokens is None else function.tokens
        self._variables: dict[str, Any] = {}
        self._states = {name: inputs[name] for name in (apple.KEY_CACHE, apple.VALUE_CACHE)}
        self._parameters: dict[float, Any] = {}
        self._cached: dict[str, Any] = {}
        self._masks: dict[tuple[int | None, int], Any] = {}
        self._slots: Any = None
        self._rotations: dict[tuple[Rope, int], tuple[Any, Any]] = {}
        self._find_positions()

    def _find_positions(self) -> None:
        """Where the new tokens stand: begin (1,), end (1,), and every row's position (tokens,), all int32."""
        if self._function.tokens is not None:
            self._begin = self._inputs[apple.POSITION]
            count = np.array([self._function.tokens], np.int32)
            self._end = mb.add(x=self._begin, y=count, name="end_position")
            rows = np.arange(self._function.tokens, dtype=np.int32)
        else:  # the mask is as wide as all tokens together: swift-transformers says the position by its shape
            self._end = _dimension(self._inputs[apple.CAUSAL_MASK], 3)
            count = _dimension(self._inputs[apple.TOKENS], 1)
            self._begin = mb.sub(x=self._end, y=count, name="begin_position")
            rows = mb.range_1d(start=np.int32(0), end=mb.squeeze(x=count, axes=[0]), step=np.int32(1))
        self._rows = mb.add(x=self._begin, y=rows, name="row_positions")

    def _rotation(self, rope: Rope, head_dim: int) -> tuple[Any, Any]:
        """Cosines and signed sines of the new tokens, both (1, 1, tokens, head_dim).

        Tables are fp32 and cast after the look-up: a table in fp16 would put an error into the weights of the file
        that no evaluation could take out again.
        """
        if (rope, head_dim) not in self._rotations:
            tables = self._constants.rotary(rope, head_dim)
            cosines, sines = (self._half(mb.gather(x=table, indices=self._rows, axis=0)) for table in tables)
            pairs = (cosines, cosines), (mb.mul(x=sines, y=self._scalar(-1)), sines)
            first, second = (mb.expand_dims(x=mb.concat(values=pair, axis=-1), axes=[0, 1]) for pair in pairs)
            self._rotations[rope, head_dim] = first, second
        return self._rotations[rope, head_dim]

    def _scalar(self, value: float) -> Any:
        return np.array(value, self._constants.dtype)[()]

    def _parameter(self, value: float) -> Any:
        """A number of the model's configuration: stored in fp32 and cast, as rotary tables are, so that it is exact."""
        if value not in self._parameters:
            self._parameters[value] = self._half(mb.const(val=np.float32(value)))
        return self._parameters[value]

    def _half(self, x: Any) -> Any:
        """``x`` in the precision of the activations."""
        return mb.cast(x=x, dtype="fp16") if self._constants.half else x

    def _variable(self, name: str) -> Any:
        """A tensor of the model; one that is used twice (a tied table) is one constant."""
        if name not in self._variables:
            self._variables[name] = self._constants.variable(name)
        return self._variables[name]

    def embed(self, tokens: Value, name: str) -> Value:
        """See Ops. The table stays compressed in the file; reading rows out of it is what Core ML is asked for."""
        rows = mb.gather(x=self._variable(name), indices=tokens[0], axis=0, name="embedding")
        return (self._half(rows) if self._wide(name) else rows,)

    def _wide(self, name: str) -> bool:
        """Whether a tensor is float32 in a program that computes in fp16."""
        return self._constants.half and self._constants.arrays(name)[-1].dtype == np.float32

    def linear(self, x: Value, names: tuple[str, ...]) -> Value:
        """See Ops. One operation for each weight: rows of the file are rows of the checkpoint's tensors."""
        return tuple(self._one_linear(x[0], name) for name in names)

    def _one_linear(self, x: Any, name: str) -> Any:
        output = apple.identifier(name.removesuffix(".weight")) + "_output"
        weight, bias = self._variable(name), None
        if bias_of(self._constants.weights, name) is not None:
            bias = self._variable(name.removesuffix("weight") + "bias")
        if not self._wide(name) and (bias is None or bias.dtype == weight.dtype):
            return mb.linear(x=x, weight=weight, bias=bias or self._zeros(weight), name=output)
        if not self._wide(name):  # formats are mixed, and an operation takes one
            return mb.add(
                x=mb.linear(x=x, weight=weight, bias=self._zeros(weight), name=output), y=bias, name=output + "_biased"
            )
        wide = mb.linear(x=mb.cast(x=x, dtype="fp32"), weight=weight, bias=self._zeros(weight), name=output + "_fp32")
        narrow = mb.cast(x=wide, dtype="fp16", name=output)
        return narrow if bias is None else mb.add(x=narrow, y=bias, name=output + "_biased")

    def _zeros(self, weight: Any) -> Any:
        """The bias of a linear that has none: MIL stores zeros, and all linears of one size can share them."""
        dtype = np.float32 if weight.dtype == types.fp32 else np.float16
        name = f"no_bias_{weight.shape[0]}_{np.dtype(dtype).name}"
        if name not in self._variables:
            self._variables[name] = Constants.shared(name, np.zeros(weight.shape[0], dtype))
        return self._variables[name]

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """See Ops. Written so that nothing between input and output leaves fp16's range.

        Everything is divided by m = max(max|x|, sqrt(epsilon)) first: x / rms(x) is the same for x / m with epsilon /
        m**2, squares are then at most 1, and a mean of them is at least 1 / width unless epsilon outweighs it.
        Casting to fp32 would be shorter, but fp32 leaves the Neural Engine; a layer_norm over [x, -x] (ANEMLL's
        trick) would be shorter too, but whether its inner sum overflows is Apple's secret.
        """
        return (self._normed(x[0], name, epsilon, apple.identifier(name.removesuffix(".weight"))),)

    def _normed(self, x: Any, name: str, epsilon: float, output: str) -> Any:
        root = mb.const(
            val=apple.root_of_epsilon(epsilon, self._constants.dtype)[()],
            name=apple.identifier(name) + "_root_epsilon",
        )
        largest = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        largest = mb.maximum(x=largest, y=root)
        small = mb.real_div(x=x, y=largest)
        mean = mb.reduce_mean(x=mb.mul(x=small, y=small), axes=[-1], keep_dims=True)
        rest = mb.real_div(x=root, y=largest)
        total = mb.add(x=mean, y=mb.mul(x=rest, y=rest))
        normed = mb.mul(x=small, y=mb.rsqrt(x=total, epsilon=self._scalar(0)))
        return mb.mul(x=normed, y=self._variable(name), name=output)

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """See Ops. The norm above of what is left without the mean, plus the bias."""
        output = apple.identifier(name.removesuffix(".weight"))
        centred = mb.sub(x=x[0], y=mb.reduce_mean(x=x[0], axes=[-1], keep_dims=True))
        normed = self._normed(centred, name, epsilon, f"{output}_normed")
        return (mb.add(x=normed, y=self._variable(name.removesuffix("weight") + "bias"), name=output),)

    def add(self, x: Value, y: Value, name: str) -> Value:
        """See Ops."""
        return (mb.add(x=x[0], y=y[0]),)

    def scale(self, x: Value, factor: float, name: str) -> Value:
        """See Ops."""
        number = self._parameter(factor)
        return (mb.mul(x=x[0], y=number, name=f"{apple.identifier(name)}_scaled"),)

    def soft_cap(self, x: Value, cap: float, name: str) -> Value:
        """See Ops."""
        number = self._parameter(cap)
        bent = mb.tanh(x=mb.real_div(x=x[0], y=number))
        return (mb.mul(x=bent, y=number, name=f"{apple.identifier(name)}_capped"),)

    def add_positions(self, x: Value, name: str) -> Value:
        """See Ops. Slot 0 may be skipped in a flexible program (see ``_not_skipped``), which would move positions."""
        if self._function.tokens is None:
            raise InputError("a model with learned positions has no flexible Core ML function; use fixed ones")
        rows = mb.gather(x=self._variable(name), indices=self._rows, axis=0)
        rows = self._half(rows) if self._wide(name) else rows
        return (mb.add(x=x[0], y=rows, name=apple.identifier(name.removesuffix(".weight"))),)

    def add_norm(self, x: Value, residual: Value, name: str, epsilon: float) -> tuple[Value, Value]:
        """See Ops."""
        total = (mb.add(x=residual[0], y=x[0]),)
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Value, layer: int, attention: Attention) -> Value:
        """See Ops. Queries that share keys are stacked as rows, so that keys and values are never repeated."""
        query, key, value = qkv
        if attention.qk_norm is not None and not attention.qk_norm.per_head:
            query, key = self._qk_normed(query, key, layer, attention.qk_norm.epsilon)
        queries = self._heads(query, attention.heads, attention.head_dim)
        keys = self._heads(key, attention.kv_heads, attention.head_dim)
        if attention.qk_norm is not None and attention.qk_norm.per_head:
            queries, keys = self._qk_normed(queries, keys, layer, attention.qk_norm.epsilon)
        queries, keys = self._rotate(queries, attention), self._rotate(keys, attention)
        values = self._heads(value, attention.kv_heads, attention.head_dim)
        all_keys = self._remember(apple.KEY_CACHE, keys, layer, attention.kv_heads)
        all_values = self._remember(apple.VALUE_CACHE, values, layer, attention.kv_heads)
        sharing = attention.heads // attention.kv_heads
        if sharing > 1:  # (1, heads, tokens, head_dim) -> (1, kv_heads, sharing * tokens, head_dim)
            rows = -1 if self._function.tokens is None else sharing * self._function.tokens
            queries = mb.reshape(x=queries, shape=[1, attention.kv_heads, rows, attention.head_dim])
        name = f"model_layers_{layer}_self_attn"
        mixed = self._attend(queries, all_keys, all_values, attention, sharing)
        return (self._merge_heads(mixed, attention, name),)

    def _qk_normed(self, query: Any, key: Any, layer: int, epsilon: float) -> tuple[Any, Any]:
        first, second = (
            self._normed(x, name, epsilon, apple.identifier(name.removesuffix(".weight")))
            for x, name in zip((query, key), qk_norm_names(layer), strict=True)
        )
        return first, second

    def _heads(self, x: Any, heads: int, head_dim: int) -> Any:
        """(1, tokens, heads * head_dim) -> (1, heads, tokens, head_dim)."""
        if self._tokens == 1:
            return mb.reshape(x=x, shape=[1, heads, 1, head_dim])
        return mb.transpose(x=mb.reshape(x=x, shape=[1, self._tokens, heads, head_dim]), perm=[0, 2, 1, 3])

    def _merge_heads(self, mixed: Any, attention: Attention, name: str) -> Any:
        """(1, kv_heads, sharing * tokens, head_dim) -> (1, tokens, query_width)."""
        if self._tokens == 1:
            return mb.reshape(x=mixed, shape=[1, 1, attention.query_width], name=name)
        heads = mb.reshape(x=mixed, shape=[1, attention.heads, self._tokens, attention.head_dim])
        rows = mb.transpose(x=heads, perm=[0, 2, 1, 3])
        return mb.reshape(x=rows, shape=[1, self._tokens, attention.query_width], name=name)

    def _rotate(self, x: Any, attention: Attention) -> Any:
        """Rotate each pair (i, i + head_dim / 2) of x (1, heads, tokens, head_dim) by its position."""
        if attention.rope is None:
            return x
        cosines, sines = self._rotation(attention.rope, attention.head_dim)
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        turned = mb.concat(values=(second, first), axis=-1)
        return mb.add(x=mb.mul(x=x, y=cosines), y=mb.mul(x=turned, y=sines))

    def _remember(self, state: str, rows: Any, layer: int, kv_heads: int) -> Any:
        """Write the new tokens' rows into the cache in place; all of the layer's (1, kv_heads, slots, head_dim).

        A layer with fewer heads than the widest one has uses the first so many.
        """
        if state not in self._cached:
            self._cached[state] = mb.read_state(input=self._states[state])
        name = f"layers_{layer}_{state}"
        whole = kv_heads == self._kv_heads
        first, behind = np.array([layer, 0], np.int32), np.array([layer + 1, 0 if whole else kv_heads], np.int32)
        zero, unmasked, masked = np.array([0], np.int32), [False, whole, False, True], [False, whole, True, True]
        if self._constants.half is False:  # Core ML has no states but fp16
            rows = mb.cast(x=rows, dtype="fp16")
        updated = mb.slice_update(
            x=self._cached[state],
            update=rows,
            begin=mb.concat(values=(first, self._begin, zero), axis=0),
            end=mb.concat(values=(behind, self._end, zero), axis=0),
            begin_mask=unmasked,
            end_mask=unmasked,
            name=f"{name}_rows",
        )
        self._cached[state] = mb.coreml_update_state(state=self._states[state], value=updated, name=f"{name}_write")
        fixed = self._function.tokens is not None
        held = mb.slice_by_index(
            x=self._cached[state],
            begin=[layer, 0, 0, 0],
            end=[*behind, 0, 0] if fixed else mb.concat(values=(behind, self._end, zero), axis=0),
            begin_mask=masked,
            end_mask=masked if fixed else unmasked,
            name=f"{name}_read",
        )
        return held if self._constants.half else mb.cast(x=held, dtype="fp32")

    def _attend(self, queries: Any, keys: Any, values: Any, attention: Attention, sharing: int) -> Any:
        """softmax(q * scale . k + mask) . v, rows (1, kv_heads, sharing * tokens, head_dim).

        Written out, because what scaled_dot_product_attention is documented to compute is q . k first, which overflows
        fp16 in models with large keys (Qwen2, phi-2), and divides then. It knows no soft cap either.
        """
        scaled = mb.mul(x=queries, y=self._parameter(attention.scale))
        scores = mb.matmul(x=scaled, y=keys, transpose_y=True)
        if attention.softcap is not None:
            cap = self._parameter(attention.softcap)
            scores = mb.mul(x=mb.tanh(x=mb.real_div(x=scores, y=cap)), y=cap)
        masked = mb.add(x=scores, y=self._mask(attention.window, sharing))
        return mb.matmul(x=mb.softmax(x=masked, axis=-1), y=values)

    def _mask(self, window: int | None, sharing: int) -> Any:
        """0 where a row may look and HIDDEN elsewhere, (1, 1, sharing * tokens, slots); written once per window."""
        if (window, sharing) not in self._masks:
            self._masks[window, sharing] = self._write_mask(window, sharing)
        return self._masks[window, sharing]

    def _write_mask(self, window: int | None, sharing: int) -> Any:
        if self._function.tokens is not None:
            columns = self._numbered_slots()
        else:
            total = mb.squeeze(x=self._end, axes=[0])
            columns = mb.expand_dims(x=mb.range_1d(start=np.int32(0), end=total, step=np.int32(1)), axes=[0])
        rows = mb.expand_dims(x=self._rows, axes=[1])  # (tokens, 1) against (1, slots)
        seen = mb.less_equal(x=columns, y=rows)
        if window is not None:
            seen = mb.logical_and(x=seen, y=mb.greater(x=columns, y=mb.sub(x=rows, y=np.int32(window))))
        if self._function.tokens is None:
            seen = mb.logical_and(x=seen, y=self._not_skipped(columns))
        # Arithmetic instead of select, which wants its values at full size: (1 - 1) * -HIDDEN or (0 - 1) * -HIDDEN.
        ones = mb.cast(x=seen, dtype="fp16" if self._constants.half else "fp32")
        mask = mb.mul(x=mb.sub(x=ones, y=self._scalar(1)), y=self._scalar(-apple.HIDDEN))
        mask = mb.expand_dims(x=mask, axes=[0, 1])
        return mask if sharing == 1 else mb.tile(x=mask, reps=[1, 1, sharing, 1])

    def _numbered_slots(self) -> Any:
        """0, 1, 2 ... (1, slots); written once, as the names of a program's values must differ."""
        if self._slots is None:
            self._slots = Constants.shared("slots", np.arange(self._constants.slots, dtype=np.int32)[None])
        return self._slots

    def _not_skipped(self, columns: Any) -> Any:
        """False for slot 0 if it was skipped: bool, to be combined with the mask.

        swift-transformers' masks are one token wider than the conversation, so that its first token lands in slot 1.
        Rotary positions are relative, so that does not matter, as long as nobody looks at the empty slot.
        """
        if apple.KEY_CACHE not in self._cached:
            self._cached[apple.KEY_CACHE] = mb.read_state(input=self._states[apple.KEY_CACHE])
        key = mb.slice_by_index(
            x=self._cached[apple.KEY_CACHE],
            begin=[0, 0, 0, 0],
            end=[1, 0, 1, 0],
            begin_mask=[False, True, False, True],
            end_mask=[False, True, False, True],
        )
        largest = mb.reduce_max(x=mb.abs(x=key), axes=[1, 2, 3], keep_dims=False)  # (1,)
        empty = mb.equal(x=largest, y=np.float16(0))
        skipped = mb.logical_and(x=empty, y=mb.greater(x=self._begin, y=np.int32(0)))
        return mb.logical_not(x=mb.logical_and(x=mb.equal(x=columns, y=np.int32(0)), y=skipped))

    def gated(self, gate_up: Value, activation: str) -> Value:
        """See Ops."""
        gate, up = gate_up
        return (mb.mul(x=_activated(gate, activation), y=up),)

    def activate(self, x: Value, activation: str) -> Value:
        """See Ops."""
        return (_activated(x[0], activation),)

    def experts(self, x: Value, layer: int, mlp: Mlp) -> Value:
        """See Ops. Weights that are chosen at run time would be unpacked whole before they are."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Value, layer: int, experts: Experts) -> Value:
        """See Ops."""
        name = f"model_layers_{layer}_mlp"
        shares = mb.softmax(x=logits[0], axis=-1, name=f"{name}_shares")
        values, chosen = mb.topk(x=shares, k=experts.active, axis=-1, ascending=False, name=f"{name}_active")
        if experts.renormalise:
            values = mb.real_div(x=values, y=mb.reduce_sum(x=values, axes=[-1], keep_dims=True))
        nothing = mb.mul(x=shares, y=self._scalar(0))
        return (
            mb.scatter_along_axis(
                data=nothing, indices=chosen, updates=values, axis=2, mode="update", name=f"{name}_weights"
            ),
        )

    def weigh(self, x: Value, weights: Value, layer: int, expert: int) -> Value:
        """See Ops."""
        masks = {"begin_mask": [True, True, False], "end_mask": [True, True, False]}
        share = mb.slice_by_index(x=weights[0], begin=[0, 0, expert], end=[0, 0, expert + 1], **masks)
        return (mb.mul(x=x[0], y=share),)

    def last_token(self, x: Value) -> Value:
        """See Ops. A prefill chunk may end in padding, so the caller says which row it wants."""
        if not self._function.one_row:
            return x
        return (mb.gather(x=x[0], indices=self._inputs[apple.LOGITS_INDEX], axis=1),)


def _activated(x: Any, activation: str) -> Any:
    if activation == "silu":
        return mb.silu(x=x)
    return mb.gelu(x=x, mode={"gelu": "EXACT", "gelu_tanh": "TANH_APPROXIMATION"}[activation])


def _dimension(x: Any, axis: int) -> Any:
    """One dimension of a flexible shape as int32 (1,)."""
    shape = mb.shape(x=x)
    return mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1])
