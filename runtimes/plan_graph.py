"""How many bytes an artifact takes beside its tensors: its operations, counted by walking the decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ..export.caches import target_cache
from ..export.config import Attention, Experts, Mlp
from ..export.decoder import decoder, every_expert
from .plan_storage import Stored, mixture_layers

# Bytes that each operation takes in a file, tensors apart: a least-squares fit (non-negative) to what the writers
# wrote for 24 models, one to thirty layers of every family; no artifact is further than 1 % of its size from it.
# Redone by hand when a writer changes: tests/test_plan_sizes.py holds the plan to 2 % of what is written.
_BYTES: Mapping[str, Mapping[str, int]] = {
    "onnx": {
        "file": 626, "linear": 281, "quantised": 95, "half": 178, "bias": 52, "norm": 308, "add_norm": 847,
        "layer_norm": 814, "rotated": 126, "qk_norm": 1842, "capped": 79, "positions": 1176, "scale": 132,
        "mixture": 972, "weigh": 1340, "scaled cache": 305,
    },
    "executorch": {
        "file": 5600, "linear": 535, "quantised": 272, "bias": 171, "norm": 1005, "add_norm": 1054, "layer_norm": 1520,
        "rotated": 851, "qk_norm": 2191, "capped": 3152, "positions": 1658, "scale": 283, "weigh": 641, "windows": 2035,
    },
    "coreml": {
        "file": 4322, "linear": 2719, "quantised": 169, "bias": 277, "norm": 5954, "add_norm": 6263, "layer_norm": 8705,
        "attention": 7152, "rotated": 5314, "rotations": 4103, "qk_norm": 11649, "capped": 1104, "shared": 298,
        "masks": 4611, "scale": 528,
    },
}  # fmt: skip


class OpCounter:
    """An Ops that counts operations by kind.

    whole  layers whose mixture of experts is one operation; in the others every expert is written out
    """

    def __init__(self, whole: Collection[int]) -> None:
        self.counts: Counter[str] = Counter(file=1)
        self._whole = whole
        self._ropes: set[object] = set()
        self._windows: set[int | None] = set()

    def embed(self, tokens: None, name: str) -> None:
        """See Ops."""

    def linear(self, x: None, names: tuple[str, ...]) -> None:
        """See Ops."""
        self.counts["linear"] += len(names)
        self.counts["product"] += 1

    def rms_norm(self, x: None, name: str, epsilon: float) -> None:
        """See Ops."""
        self.counts["norm"] += 1

    def add_norm(self, x: None, residual: None, name: str, epsilon: float) -> tuple[None, None]:
        """See Ops."""
        self.counts["add_norm"] += 1
        return None, None

    def layer_norm(self, x: None, name: str, epsilon: float) -> None:
        """See Ops."""
        self.counts["layer_norm"] += 1

    def add(self, x: None, y: None, name: str) -> None:
        """See Ops."""

    def scale(self, x: None, factor: float, name: str) -> None:
        """See Ops."""
        self.counts["scale"] += 1

    def soft_cap(self, x: None, cap: float, name: str) -> None:
        """See Ops."""

    def add_positions(self, x: None, name: str) -> None:
        """See Ops."""
        self.counts["positions"] += 1

    def attention(self, qkv: None, layer: int, attention: Attention) -> None:
        """See Ops. ``windows`` and ``rotations`` are written once for all layers that share them."""
        self._ropes.add(attention.rope)
        self._windows.add(attention.window)
        self.counts["attention"] += 1
        self.counts["rotated"] += attention.rope is not None
        self.counts["qk_norm"] += attention.qk_norm is not None
        self.counts["capped"] += attention.softcap is not None
        self.counts["shared"] += attention.heads > attention.kv_heads
        self.counts["rotations"] = len(self._ropes - {None})
        self.counts["windows"] = len(self._windows - {None})
        self.counts["masks"] = len(self._windows)

    def gated(self, gate_up: None, activation: str) -> None:
        """See Ops."""

    def activate(self, x: None, activation: str) -> None:
        """See Ops."""

    def experts(self, x: None, layer: int, mlp: Mlp) -> None:
        """See Ops."""
        if layer in self._whole:
            self.counts["mixture"] += 1
            self.linear(None, ("router",))
        else:
            every_expert(self, x, layer, mlp)

    def route(self, logits: None, layer: int, experts: Experts) -> None:
        """See Ops."""

    def weigh(self, x: None, weights: None, layer: int, expert: int) -> None:
        """See Ops."""
        self.counts["weigh"] += 1

    def last_token(self, x: None) -> None:
        """See Ops."""


def graph_bytes(target: str, stored: Stored) -> int:
    """Bytes of a target's graph, program or specification, without tensors; an estimate."""
    counter = OpCounter(mixture_layers(stored) if target == "onnx" else ())
    decoder(counter, stored.config, None)
    counts = counter.counts
    counts["quantised"] = counts["linear"] if stored.recipe.linear.bits is not None else 0
    counts["half"] = counts["product"] if stored.recipe.linear.kind == "fp16" else 0
    counts["bias"] = len(stored.biases)
    counts["scaled cache"] = counts["attention"] if target_cache(target, stored.cache).static_scales else 0
    return sum(size * counts[kind] for kind, size in _BYTES[target].items())
