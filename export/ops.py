"""The seam between the decoder and everything that can interpret it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from .config import Attention, Experts, Mlp

T = TypeVar("T")


class Ops(Protocol[T]):
    """The operations of a decoder, over a backend's own kind of value ``T``.

    A backend computes (TorchOps), or writes (OnnxOps: graph nodes, CoreMLOps: MIL), or only takes notes (Inventory).
    An operation exists here only where targets lower it differently. ``name`` is always a tensor's name in the
    checkpoint (``model.layers.0.mlp.down_proj.weight``); a bias belongs to it if the weights have ``...bias``.
    Shapes below are (batch, tokens, width).
    """

    def embed(self, tokens: T, name: str) -> T:
        """Token ids (batch, tokens) -> rows of the table (batch, tokens, hidden)."""
        ...

    def linear(self, x: T, names: tuple[str, ...]) -> T:
        """x @ W.T + b for several weights that share the input; their outputs side by side in the last axis."""
        ...

    def rms_norm(self, x: T, name: str, epsilon: float) -> T:
        """Root mean square norm over the last axis (Zhang and Sennrich 2019), times the weight."""
        ...

    def add_norm(self, x: T, residual: T, name: str, epsilon: float) -> tuple[T, T]:
        """(rms_norm(x + residual), x + residual): targets have this fused."""
        ...

    def layer_norm(self, x: T, name: str, epsilon: float) -> T:
        """Layer norm over the last axis (Ba et al. 2016), times the weight, plus the bias ``...bias``."""
        ...

    def add(self, x: T, y: T, name: str) -> T:
        """x + y; ``name`` says where."""
        ...

    def scale(self, x: T, factor: float, name: str) -> T:
        """x * factor; ``name`` says where."""
        ...

    def soft_cap(self, x: T, cap: float, name: str) -> T:
        """tanh(x / cap) * cap; ``name`` says where."""
        ...

    def add_positions(self, x: T, name: str) -> T:
        """x plus the table's rows for the positions of its tokens."""
        ...

    def attention(self, qkv: T, layer: int, attention: Attention) -> T:
        """Causal attention of the new tokens over all tokens so far.

        ``qkv`` (batch, tokens, query_width + 2 kv_width) is normed and rotated by position where ``attention`` says so,
        its keys and values are put into the layer's cache. Returns (batch, tokens, query_width).
        """
        ...

    def gated(self, gate_up: T, activation: str) -> T:
        """activation(gate) * up for gate and up side by side (batch, tokens, 2 intermediate)."""
        ...

    def activate(self, x: T, activation: str) -> T:
        """activation(x)."""
        ...

    def experts(self, x: T, layer: int, mlp: Mlp) -> T:
        """The layer's mixture of experts (Shazeer et al. 2017): what the chosen MLPs give, weighed by the router."""
        ...

    def route(self, logits: T, layer: int, experts: Experts) -> T:
        """The router's logits (batch, tokens, count) -> each expert's weight, 0 for those not among the largest."""
        ...

    def weigh(self, x: T, weights: T, layer: int, expert: int) -> T:
        """x times one expert's weight (batch, tokens, 1)."""
        ...

    def last_token(self, x: T) -> T:
        """The tokens whose logits are wanted: (batch, 1, width) when generating, x itself when verifying."""
        ...
