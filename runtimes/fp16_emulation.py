"""What a Core ML program computes where every value is rounded to fp16: the reference with that arithmetic put in.

Rounding follows the operations that ``export.coreml_ops`` writes, one by one, so that a correct runtime of the program
differs only by the order of its sums, and by the roundings that such a difference tips over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..export import apple
from ..export.config import Attention, Experts, Mlp, ModelConfig
from ..export.decoder import decoder, every_expert, qk_norm_names
from ..export.rope import rotary_tables
from ..export.to_torch import TorchOps
from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor


def emulated_logits(
    weights: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    *,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
) -> NDArray[np.float32]:
    """As ``export.to_torch.reference_logits``, in fp16: float32 (batch, tokens - first, vocab_size)."""
    with torch.inference_mode():
        ops = Fp16Ops(weights, config, tokens.shape[1], embedding_noise, first)
        logits: NDArray[np.float32] = decoder(ops, config, torch.from_numpy(tokens)).numpy()
    return logits


class HalfWeights:
    """Canonical weights as a program that computes in fp16 unpacks them: codes times scales, rounded to fp16.

    Four-bit weights lose nothing (3 bits times 8 bits of mantissa fit into 11); eight-bit ones do.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> CanonicalTensor:
        tensor = self._weights[name]
        return tensor.dequantize().astype(np.float16) if isinstance(tensor, QuantizedTensor) else tensor


class Fp16Ops:
    """Computes with TorchOps and rounds after each operation of the program; one whole pass, without a cache.

    A program of a recipe in fp32 computes in fp32, and only its cache is fp16.
    """

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        context: int,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
        first: int = 0,
    ) -> None:
        half = not apple.computes_in_fp32(weights)
        self._weights = HalfWeights(weights) if half else weights
        self._torch = TorchOps(self._weights, config, context, first=first)
        self._noise = embedding_noise or _unchanged
        self._round: Callable[[Tensor], Tensor] = round_to_half if half else _unchanged
        self._dtype = np.float16 if half else np.float32
        self._context = context

    def embed(self, tokens: Tensor, name: str) -> Tensor:
        """See Ops. Noise comes behind the rounding: in front of it, it would be rounded away."""
        return self._noise(self._round(self._torch.embed(tokens, name)))

    def linear(self, x: Tensor, names: tuple[str, ...]) -> Tensor:
        """See Ops."""
        return self._round(self._torch.linear(x, names))

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops; the steps are those of ``CoreMLOps.rms_norm``."""
        root = torch.tensor(float(apple.root_of_epsilon(epsilon, self._dtype)))
        largest = torch.maximum(x.abs().amax(-1, keepdim=True), root)
        small = self._round(x / largest)
        mean = self._round(self._round(small * small).mean(-1, keepdim=True))
        rest = self._round(root / largest)
        total = self._round(mean + self._round(rest * rest))
        normed = self._round(small * self._round(torch.rsqrt(total)))
        return self._round(normed * self._vector(name))

    def _vector(self, name: str) -> Tensor:
        weight = self._weights[name]
        assert not isinstance(weight, QuantizedTensor), f"{name} is never quantised"
        return torch.from_numpy(np.asarray(weight, np.float32))

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops."""
        centred = self._round(x - self._round(x.mean(-1, keepdim=True)))
        return self._round(self.rms_norm(centred, name, epsilon) + self._vector(name.removesuffix("weight") + "bias"))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """See Ops."""
        return self._round(x + y)

    def scale(self, x: Tensor, factor: float, name: str) -> Tensor:
        """See Ops."""
        return self._round(x * float(self._dtype(factor)))

    def soft_cap(self, x: Tensor, cap: float, name: str) -> Tensor:
        """See Ops."""
        number = float(self._dtype(cap))
        return self._round(self._round(torch.tanh(self._round(x / number))) * number)

    def add_positions(self, x: Tensor, name: str) -> Tensor:
        """See Ops."""
        return self._round(self._torch.add_positions(x, name))

    def add_norm(self, x: Tensor, residual: Tensor, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """See Ops."""
        total = self._round(x + residual)
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """See Ops; the steps are those of ``CoreMLOps``."""
        batch, tokens, _ = qkv.shape
        parts = qkv.split([attention.query_width, attention.kv_width, attention.kv_width], -1)
        parts = self._normed(parts, layer, attention)
        q, k, v = (part.reshape(batch, tokens, -1, attention.head_dim).transpose(1, 2) for part in parts)
        q, k, v = self._rotate(q, attention), round_to_half(self._rotate(k, attention)), round_to_half(v)
        repeats = attention.heads // attention.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = self._scores(q, k, attention)
        scores = self._round(torch.where(_visible(tokens, attention.window), scores, scores + apple.HIDDEN))
        mixed = self._round(self._round(torch.softmax(scores, -1)) @ v)  # (batch, heads, tokens, head_dim)
        return mixed.transpose(1, 2).reshape(batch, tokens, attention.query_width)

    def _normed(self, parts: tuple[Tensor, ...], layer: int, attention: Attention) -> tuple[Tensor, ...]:
        """Queries and keys through their norms; (batch, tokens, width) each."""
        if attention.qk_norm is None:
            return parts
        normed = []
        for part, name in zip(parts, qk_norm_names(layer), strict=False):
            heads = part.unflatten(-1, (-1, attention.head_dim)) if attention.qk_norm.per_head else part
            normed.append(self.rms_norm(heads, name, attention.qk_norm.epsilon).reshape(part.shape))
        return (*normed, parts[2])

    def _scores(self, q: Tensor, k: Tensor, attention: Attention) -> Tensor:
        """(q * scale) . k (batch, heads, tokens, tokens), bent by the soft cap."""
        scaled = self._round(q * float(self._dtype(attention.scale)))
        scores = self._round(scaled @ k.transpose(2, 3))
        if attention.softcap is None:
            return scores
        return self.soft_cap(scores, attention.softcap, "")

    def _rotate(self, x: Tensor, attention: Attention) -> Tensor:
        """Rotate each pair (i, i + head_dim / 2) of x (batch, heads, tokens, head_dim) by its position."""
        if attention.rope is None:
            return x
        tables = map(torch.from_numpy, rotary_tables(attention.rope, attention.head_dim, self._context))
        cosines, sines = (self._round(table[: x.shape[2]]) for table in tables)
        first, second = x.chunk(2, -1)
        along = self._round(x * torch.cat([cosines, cosines], -1))
        return self._round(along + self._round(torch.cat([second, first], -1) * torch.cat([-sines, sines], -1)))

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops."""
        gate, up = gate_up.chunk(2, -1)
        return self._round(self.activate(gate, activation) * up)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See Ops."""
        return self._round(self._torch.activate(x, activation))

    def experts(self, x: Tensor, layer: int, mlp: Mlp) -> Tensor:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Tensor, layer: int, experts: Experts) -> Tensor:
        """See Ops."""
        shares = self._round(torch.softmax(logits, -1))
        values, chosen = torch.sort(shares, dim=-1, descending=True, stable=True)
        values, chosen = values[..., : experts.active], chosen[..., : experts.active]
        if experts.renormalise:
            values = self._round(values / self._round(values.sum(-1, keepdim=True)))
        return torch.zeros_like(logits).scatter(-1, chosen, values)

    def weigh(self, x: Tensor, weights: Tensor, layer: int, expert: int) -> Tensor:
        """See Ops."""
        return self._round(x * weights[..., expert : expert + 1])

    def last_token(self, x: Tensor) -> Tensor:
        """See Ops."""
        return self._torch.last_token(x)


def round_to_half(x: Tensor) -> Tensor:
    """To the nearest fp16, kept as fp32."""
    return x.half().float()


def _unchanged(x: Tensor) -> Tensor:
    return x


def _visible(tokens: int, window: int | None) -> Tensor:
    own, other = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    seen = other <= own
    return seen if window is None else seen & (other > own - window)
