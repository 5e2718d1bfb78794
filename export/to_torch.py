"""The fp32 reference: the decoder computed with torch, one layer's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..quantize.store import Weights, bias_of
from ..quantize.tensor import QuantizedTensor
from .config import Attention, ModelConfig, rotary_tables
from .decoder import decoder

# (input of a linear (..., in), its canonical weight) -> the input as the target's kernel sees it
ActivationArithmetic = Callable[[Tensor, QuantizedTensor], Tensor]


class TorchOps:
    """Computes in fp32. Weights are dequantised when they are used and dropped again.

    context      length of the rotary tables, tokens
    activations  the target's activation arithmetic, applied to the input of every quantised linear; None is exact
    embedding_noise  changes the embedding's output (same shape), to measure how chaotic a model is
    first        give logits from this token on
    """

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        context: int,
        activations: ActivationArithmetic | None = None,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
        first: int = 0,
    ) -> None:
        self._weights = weights
        self._first = first
        self._activations = activations
        self._noise = embedding_noise
        attention = config.attention
        self._cosines, self._sines = map(torch.from_numpy, rotary_tables(attention.rope, attention.head_dim, context))
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache.clear()

    def embed(self, tokens: Tensor, name: str) -> Tensor:
        """See Ops. Only the rows that are asked for are dequantised."""
        table = self._weights[name]
        used, places = torch.unique(tokens, return_inverse=True)
        if isinstance(table, QuantizedTensor):
            rows = used.numpy()
            table = QuantizedTensor(table.codes[rows], table.scales[rows], table.bits).dequantize()
        else:
            table = table[used.numpy()]
        x = _tensor(table)[places]  # (batch, tokens, hidden)
        return x if self._noise is None else self._noise(x)

    def linear(self, x: Tensor, names: tuple[str, ...]) -> Tensor:
        """See Ops."""
        parts = [self._one_linear(x, name) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _one_linear(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[name]
        bias = bias_of(self._weights, name)
        if isinstance(weight, QuantizedTensor):
            if self._activations is not None:
                x = self._activations(x, weight)
            weight = weight.dequantize()
        result: Tensor = torch.nn.functional.linear(x, _tensor(weight), None if bias is None else _tensor(bias))
        return result

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops."""
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
        return normed * _tensor(self._dense(name))

    def add_norm(self, x: Tensor, residual: Tensor, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """See Ops."""
        total = x + residual
        return self.rms_norm(total, name, epsilon), total

    def attention(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """See Ops. The cache grows by the new tokens."""
        batch, tokens, _ = qkv.shape
        parts = qkv.split([attention.query_width, attention.kv_width, attention.kv_width], -1)
        q, k, v = (part.view(batch, tokens, -1, attention.head_dim).transpose(1, 2) for part in parts)
        past = self._cache[layer][0].shape[2] if layer in self._cache else 0
        q, k = self._rotate(q, past), self._rotate(k, past)  # (batch, heads, tokens, head_dim)
        if past:
            k, v = (torch.cat(pair, 2) for pair in zip(self._cache[layer], (k, v), strict=True))
        self._cache[layer] = k, v
        repeats = attention.heads // attention.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(2, 3) * attention.scale  # (batch, heads, tokens, all tokens)
        if attention.softcap is not None:
            scores = torch.tanh(scores / attention.softcap) * attention.softcap
        scores = scores.masked_fill(~_visible(tokens, past + tokens, attention.window), float("-inf"))
        mixed: Tensor = torch.softmax(scores, -1) @ v
        return mixed.transpose(1, 2).reshape(batch, tokens, attention.query_width)

    def _rotate(self, x: Tensor, past: int) -> Tensor:
        """Rotate each pair (i, i + head_dim / 2) of x (batch, heads, tokens, head_dim) by its position."""
        cosines = self._cosines[past : past + x.shape[2]]
        sines = self._sines[past : past + x.shape[2]]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops."""
        gate, up = gate_up.chunk(2, -1)
        assert activation == "silu", activation
        return torch.nn.functional.silu(gate) * up

    def last_token(self, x: Tensor) -> Tensor:
        """Every token from ``first`` on."""
        return x[:, self._first :]

    def _dense(self, name: str) -> np.ndarray:
        tensor = self._weights[name]
        assert not isinstance(tensor, QuantizedTensor), f"{name} is never quantised"
        return tensor


def relative_noise(size: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Multiplies each value by 1 + size * a normal deviate; equal seeds give equal noise."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x * (1 + size * torch.randn(x.shape, generator=generator))


def _tensor(array: np.ndarray) -> Tensor:
    """As fp32; what is memory-mapped is copied, because torch has no tensors that must not be written."""
    floats = np.asarray(array, np.float32)
    return torch.from_numpy(floats if floats.flags.writeable else floats.copy())


def _visible(tokens: int, total: int, window: int | None) -> Tensor:
    """Which of all tokens each new one may look at, bool (tokens, total)."""
    own = torch.arange(total - tokens, total)[:, None]
    other = torch.arange(total)[None]
    seen = other <= own
    return seen if window is None else seen & (other > own - window)


@torch.inference_mode()
def reference_logits(
    weights: Weights,
    config: ModelConfig,
    tokens: np.ndarray,
    activations: ActivationArithmetic | None = None,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
) -> np.ndarray:
    """Logits for token ids int64 (batch, tokens), from token ``first`` on: float32 (batch, tokens - first, vocab)."""
    ops = TorchOps(weights, config, tokens.shape[1], activations, embedding_noise, first)
    logits: np.ndarray = decoder(ops, config, torch.from_numpy(tokens)).numpy()
    return logits
