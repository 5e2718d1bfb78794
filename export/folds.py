"""Where a factor on a linear's input columns can be undone: the norm, or the projection, that stands directly in front.

Found by walking the decoder with values that only know where they come from and who reads them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import decoder, every_expert


@dataclass(frozen=True)
class Fold:
    """What to divide when the columns of a linear are multiplied: a norm's weight, or the rows of a projection."""

    norm: str | None = None
    projection: str | None = None


@dataclass(eq=False)
class _Value:
    """A value of the walk: the fold it offers, the linear it came out of, and how often it is read."""

    fold: Fold | None = None
    linear: tuple[str, ...] = ()
    reads: int = 0


@dataclass
class _Walk:
    """An Ops over ``_Value``. What has no method here cannot be folded into, and that is safe."""

    inputs: dict[tuple[str, ...], _Value] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def embed(self, tokens: _Value, name: str) -> _Value:
        """See Ops. A table that is the head too is used twice."""
        self.uses[name] += 1
        return _Value()

    def linear(self, x: _Value, names: tuple[str, ...]) -> _Value:
        """See Ops."""
        x.reads += 1
        self.inputs[names] = x
        self.uses.update(names)
        return _Value(linear=names)

    def rms_norm(self, x: _Value, name: str, epsilon: float) -> _Value:
        """See Ops."""
        x.reads += 1
        self.uses[name] += 1
        return _Value(Fold(norm=name))

    def add_norm(self, x: _Value, residual: _Value, name: str, epsilon: float) -> tuple[_Value, _Value]:
        """See Ops."""
        residual.reads += 1
        return self.rms_norm(x, name, epsilon), _Value()

    def layer_norm(self, x: _Value, name: str, epsilon: float) -> _Value:
        """See Ops. Weight and bias are divided alike."""
        return self.rms_norm(x, name, epsilon)

    def add(self, x: _Value, y: _Value, name: str) -> _Value:
        """See Ops."""
        x.reads += 1
        y.reads += 1
        return _Value()

    def scale(self, x: _Value, factor: float, name: str) -> _Value:
        """See Ops."""
        x.reads += 1
        return _Value()

    def soft_cap(self, x: _Value, cap: float, name: str) -> _Value:
        """See Ops."""
        x.reads += 1
        return _Value()

    def add_positions(self, x: _Value, name: str) -> _Value:
        """See Ops."""
        x.reads += 1
        return _Value()

    def attention(self, qkv: _Value, layer: int, attention: Attention) -> _Value:
        """See Ops."""
        qkv.reads += 1
        return _Value()

    def gated(self, gate_up: _Value, activation: str) -> _Value:
        """See Ops. The output is proportional to the second half of the input, the rows of ``up``."""
        gate_up.reads += 1
        _, *up = gate_up.linear or ("",)
        return _Value(Fold(projection=up[0]) if len(up) == 1 and gate_up.reads == 1 else None)

    def activate(self, x: _Value, activation: str) -> _Value:
        """See Ops."""
        x.reads += 1
        return _Value()

    def experts(self, x: _Value, layer: int, mlp: Mlp) -> _Value:
        """See Ops. Their input has many readers; each one's own values can be folded."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: _Value, layer: int, experts: Experts) -> _Value:
        """See Ops."""
        logits.reads += 1
        return _Value()

    def weigh(self, x: _Value, weights: _Value, layer: int, expert: int) -> _Value:
        """See Ops."""
        x.reads += 1
        return _Value()

    def last_token(self, x: _Value) -> _Value:
        """See Ops."""
        return x


def find_folds(config: ModelConfig) -> dict[tuple[str, ...], Fold]:
    """The linears (by the names of their weights) whose columns may have factors, and where those are undone.

    Only where the value is read by that linear alone, and no weight is used twice.
    """
    walk = _Walk()
    decoder(walk, config, _Value())
    folds = {}
    for names, x in walk.inputs.items():
        if x.fold is None or x.reads != 1:
            continue
        undone = x.fold.norm or x.fold.projection or ""
        if all(walk.uses[name] == 1 for name in (*names, undone)):
            folds[names] = x.fold
    return folds
