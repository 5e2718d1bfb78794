"""What a finished artifact must contain, found by walking the decoder: the yardstick of every read-back."""

from __future__ import annotations

from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import decoder, every_expert, qk_norm_names


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

    def layer_norm(self, x: None, name: str, epsilon: float) -> None:
        """See Ops."""
        self.rms_norm(x, name, epsilon)
        self.weights[name.removesuffix("weight") + "bias"] = None

    def add(self, x: None, y: None, name: str) -> None:
        """See Ops."""

    def scale(self, x: None, factor: float, name: str) -> None:
        """See Ops."""
        self.constants[f"{name}:scale"] = factor

    def soft_cap(self, x: None, cap: float, name: str) -> None:
        """See Ops."""
        self.constants[f"{name}:softcap"] = cap

    def add_positions(self, x: None, name: str) -> None:
        """See Ops."""
        self.weights[name] = None

    def attention(self, qkv: None, layer: int, attention: Attention) -> None:
        """See Ops."""
        prefix = f"model.layers.{layer}.self_attn:"
        self.constants |= {
            prefix + "heads": attention.heads,
            prefix + "kv_heads": attention.kv_heads,
            prefix + "scale": attention.scale,
            prefix + "window": -1 if attention.window is None else attention.window,
            prefix + "softcap": attention.softcap or 0.0,
            prefix + "rotary tables": attention.rope is not None,
        }
        if attention.qk_norm is not None:
            for name in qk_norm_names(layer):
                self.rms_norm(None, name, attention.qk_norm.epsilon)

    def gated(self, gate_up: None, activation: str) -> None:
        """See Ops."""

    def activate(self, x: None, activation: str) -> None:
        """See Ops."""

    def experts(self, x: None, layer: int, mlp: Mlp) -> None:
        """See Ops."""
        every_expert(self, x, layer, mlp)

    def route(self, logits: None, layer: int, experts: Experts) -> None:
        """See Ops."""
        prefix = f"model.layers.{layer}.mlp:"
        self.constants |= {prefix + "active experts": experts.active, prefix + "renormalise": experts.renormalise}

    def weigh(self, x: None, weights: None, layer: int, expert: int) -> None:
        """See Ops."""

    def last_token(self, x: None) -> None:
        """See Ops."""


def take_inventory(config: ModelConfig) -> Inventory:
    """Walk the decoder once."""
    inventory = Inventory()
    decoder(inventory, config, None)
    return inventory
