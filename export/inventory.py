"""What a finished artifact must contain, found by walking the decoder: the yardstick of every read-back."""

from __future__ import annotations

from .config import Attention, ModelConfig
from .decoder import decoder


class Inventory:
    """An Ops that computes nothing and takes notes.

    weights    names of all tensors, in the order in which the decoder uses them, each once
    linears    the groups of weights that share an input, as the decoder gives them to ``linear``
    constants  every number that an artifact carries beside its weights, by a name that says where it belongs
    """

    def __init__(self) -> None:
        self.weights: dict[str, None] = {}
        self.linears: list[tuple[str, ...]] = []
        self.constants: dict[str, float] = {}

    def embed(self, tokens: None, name: str) -> None:
        """See Ops."""
        self.weights[name] = None

    def linear(self, x: None, names: tuple[str, ...]) -> None:
        """See Ops."""
        self.linears.append(names)
        self.weights.update(dict.fromkeys(names))

    def rms_norm(self, x: None, name: str, epsilon: float) -> None:
        """See Ops."""
        self.weights[name] = None
        self.constants[f"{name}:epsilon"] = epsilon

    def add_norm(self, x: None, residual: None, name: str, epsilon: float) -> tuple[None, None]:
        """See Ops."""
        self.rms_norm(x, name, epsilon)
        return None, None

    def attention(self, qkv: None, layer: int, attention: Attention) -> None:
        """See Ops."""
        prefix = f"model.layers.{layer}.self_attn:"
        self.constants |= {
            prefix + "heads": attention.heads,
            prefix + "kv_heads": attention.kv_heads,
            prefix + "scale": attention.scale,
            prefix + "window": -1 if attention.window is None else attention.window,
            prefix + "softcap": attention.softcap or 0.0,
        }

    def gated(self, gate_up: None, activation: str) -> None:
        """See Ops."""

    def last_token(self, x: None) -> None:
        """See Ops."""


def take_inventory(config: ModelConfig) -> Inventory:
    """Walk the decoder once."""
    inventory = Inventory()
    decoder(inventory, config, None)
    return inventory
