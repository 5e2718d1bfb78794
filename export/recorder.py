"""Listening to a decoder while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from .config import Attention, Experts, Mlp
from .decoder import every_expert, fused_name
from .ops import Ops, T


class Recorder(Generic[T]):
    """An Ops that hands every call on to another one and tells ``hear`` what came out, by name.

    ``hear_input`` is told what goes into each linear, with the names of its weights, before it is computed.

    The names are those that OnnxOps gives its tensors: ``fused_name(...) + ".output"`` behind a linear,
    ``model.layers.0.self_attn`` behind the attention, a norm's own name behind a norm.
    """

    def __init__(
        self,
        ops: Ops[T],
        hear: Callable[[str, T], None],
        hear_input: Callable[[tuple[str, ...], T], None] | None = None,
    ) -> None:
        self._ops = ops
        self._hear = hear
        self._hear_input = hear_input

    def _heard(self, name: str, value: T) -> T:
        self._hear(name, value)
        return value

    def embed(self, tokens: T, name: str) -> T:
        """See Ops."""
        return self._heard(name.removesuffix(".weight"), self._ops.embed(tokens, name))

    def linear(self, x: T, names: tuple[str, ...]) -> T:
        """See Ops."""
        if self._hear_input is not None:
            self._hear_input(names, x)
        return self._heard(f"{fused_name(names)}.output", self._ops.linear(x, names))

    def rms_norm(self, x: T, name: str, epsilon: float) -> T:
        """See Ops."""
        return self._heard(name.removesuffix(".weight"), self._ops.rms_norm(x, name, epsilon))

    def add_norm(self, x: T, residual: T, name: str, epsilon: float) -> tuple[T, T]:
        """See Ops."""
        normed, total = self._ops.add_norm(x, residual, name, epsilon)
        return self._heard(name.removesuffix(".weight"), normed), total

    def layer_norm(self, x: T, name: str, epsilon: float) -> T:
        """See Ops."""
        return self._heard(name.removesuffix(".weight"), self._ops.layer_norm(x, name, epsilon))

    def add(self, x: T, y: T, name: str) -> T:
        """See Ops."""
        return self._ops.add(x, y, name)

    def scale(self, x: T, factor: float, name: str) -> T:
        """See Ops."""
        return self._ops.scale(x, factor, name)

    def soft_cap(self, x: T, cap: float, name: str) -> T:
        """See Ops."""
        return self._ops.soft_cap(x, cap, name)

    def add_positions(self, x: T, name: str) -> T:
        """See Ops."""
        return self._ops.add_positions(x, name)

    def attention(self, qkv: T, layer: int, attention: Attention) -> T:
        """See Ops."""
        return self._heard(f"model.layers.{layer}.self_attn", self._ops.attention(qkv, layer, attention))

    def gated(self, gate_up: T, activation: str) -> T:
        """See Ops."""
        return self._ops.gated(gate_up, activation)

    def activate(self, x: T, activation: str) -> T:
        """See Ops."""
        return self._ops.activate(x, activation)

    def experts(self, x: T, layer: int, mlp: Mlp) -> T:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: T, layer: int, experts: Experts) -> T:
        """See Ops."""
        return self._ops.route(logits, layer, experts)

    def weigh(self, x: T, weights: T, layer: int, expert: int) -> T:
        """See Ops."""
        return self._ops.weigh(x, weights, layer, expert)

    def last_token(self, x: T) -> T:
        """See Ops."""
        return self._ops.last_token(x)
