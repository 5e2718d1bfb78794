"""The fp32 reference: the decoder computed with torch, one layer's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..quantize.cache import Head
from ..quantize.store import Weights, bias_of
from ..quantize.tensor import QuantizedTensor
from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import decoder, every_expert, qk_norm_names
from .rope import Rope, rotary_tables

# (input of a linear (..., in), its canonical weight) -> the input as the target's kernel sees it
ActivationArithmetic = Callable[[Tensor, QuantizedTensor], Tensor]
# (keys or values that go into the cache (batch, kv_heads, tokens, head_dim), the layer, which of both) -> as it gives
# them back, to the tokens that brought them as well; and queries (batch, heads, ...), as they meet such keys
CacheArithmetic = Callable[[Tensor, int, Head], Tensor]


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}


class TorchOps:
    """Computes in fp32. Weights are dequantised when they are used and dropped again.

    context      length of the rotary tables, tokens
    activations  the target's activation arithmetic, applied to the input of every quantised linear; None is exact
    embedding_noise  changes the embedding's output (same shape), to measure how chaotic a model is
    first        give logits from this token on
    cache        the target's arithmetic of keys and values in its cache; None keeps them exactly
    """

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        context: int,
        activations: ActivationArithmetic | None = None,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
        first: int = 0,
        cache: CacheArithmetic | None = None,
    ) -> None:
        self._weights = weights
        self._kept = cache
        self._first = first
        self._activations = activations
        self._noise = embedding_noise
        self._context = context
        self._tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._tokens = 0  # that were embedded so far
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache.clear()
        self._tokens = 0

    def embed(self, tokens: Tensor, name: str) -> Tensor:
        """See Ops. Only the rows that are asked for are dequantised."""
        self._tokens += tokens.shape[1]
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

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops."""
        weight, bias = _tensor(self._dense(name)), _tensor(self._dense(name.removesuffix("weight") + "bias"))
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """See Ops."""
        return x + y

    def scale(self, x: Tensor, factor: float, name: str) -> Tensor:
        """See Ops."""
        return x * factor

    def soft_cap(self, x: Tensor, cap: float, name: str) -> Tensor:
        """See Ops."""
        return torch.tanh(x / cap) * cap

    def add_positions(self, x: Tensor, name: str) -> Tensor:
        """See Ops."""
        return x + _tensor(self._dense(name)[self._tokens - x.shape[1] : self._tokens])

    def attention(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """See Ops. The cache grows by the new tokens."""
        batch, tokens, _ = qkv.shape
        parts = qkv.split([attention.query_width, attention.kv_width, attention.kv_width], -1)
        q, k, v = (
            part.reshape(batch, tokens, -1, attention.head_dim) for part in self._normed(parts, layer, attention)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        past = self._cache[layer][0].shape[2] if layer in self._cache else 0
        q, k = self._rotate(q, attention, past), self._rotate(k, attention, past)  # (batch, heads, tokens, head_dim)
        if self._kept is not None:
            q, k, v = self._kept(q, layer, "query"), self._kept(k, layer, "key"), self._kept(v, layer, "value")
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

    def _normed(self, parts: tuple[Tensor, ...], layer: int, attention: Attention) -> tuple[Tensor, ...]:
        """Queries and keys through their norms; (batch, tokens, width) each."""
        if attention.qk_norm is None:
            return parts
        epsilon, normed = attention.qk_norm.epsilon, []
        for part, name in zip(parts, qk_norm_names(layer), strict=False):
            heads = part.unflatten(-1, (-1, attention.head_dim)) if attention.qk_norm.per_head else part
            normed.append(self.rms_norm(heads, name, epsilon).reshape(part.shape))
        return (*normed, parts[2])

    def _rotate(self, x: Tensor, attention: Attention, past: int) -> Tensor:
        """Rotate each pair (i, i + head_dim / 2) of x (batch, heads, tokens, head_dim) by its position."""
        if attention.rope is None:
            return x
        cosines, sines = (table[past : past + x.shape[2]] for table in self._rotary(attention.rope, attention.head_dim))
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)

    def _rotary(self, rope: Rope, head_dim: int) -> tuple[Tensor, Tensor]:
        if (rope, head_dim) not in self._tables:
            cosines, sines = map(torch.from_numpy, rotary_tables(rope, head_dim, self._context))
            self._tables[rope, head_dim] = cosines, sines
        return self._tables[rope, head_dim]

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops."""
        gate, up = gate_up.chunk(2, -1)
        return _ACTIVATIONS[activation](gate) * up

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See Ops."""
        return _ACTIVATIONS[activation](x)

    def experts(self, x: Tensor, layer: int, mlp: Mlp) -> Tensor:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Tensor, layer: int, experts: Experts) -> Tensor:
        """See Ops."""
        values, chosen = torch.softmax(logits, -1).topk(experts.active, -1)
        if experts.renormalise:
            values = values / values.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, chosen, values)

    def weigh(self, x: Tensor, weights: Tensor, layer: int, expert: int) -> Tensor:
        """See Ops."""
        return x * weights[..., expert : expert + 1]

    def last_token(self, x: Tensor) -> Tensor:
        """Every token from ``first`` on."""
        return x[:, self._first :]

    def _dense(self, name: str) -> np.ndarray:
        tensor = self._weights[name]
        assert not isinstance(tensor, QuantizedTensor), f"{name} is never quantised"
        return tensor


def finished_logits(logits: Tensor, config: ModelConfig) -> Tensor:
    """What the decoder does to the head's output: scale and soft cap."""
    logits = logits * config.logits_scale
    cap = config.logits_softcap
    return logits if cap is None else torch.tanh(logits / cap) * cap


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
    cache: CacheArithmetic | None = None,
) -> np.ndarray:
    """Logits for token ids int64 (batch, tokens), from token ``first`` on: float32 (batch, tokens - first, vocab)."""
    ops = TorchOps(weights, config, tokens.shape[1], activations, embedding_noise, first, cache)
    logits: np.ndarray = decoder(ops, config, torch.from_numpy(tokens)).numpy()
    return logits
