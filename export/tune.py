"""End-to-end tuning: scales and norms are trained until the quantised model speaks like its source; codes stay.

Distillation of the source's next-token distribution (Hinton, Vinyals and Dean 2015) into the scales alone, as in the
second phase of Chen et al. 2024, "EfficientQAT", with Adam (Kingma and Ba 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..quantize.store import CanonicalTensor, Weights, bias_of
from ..quantize.tensor import QuantizedTensor, to_scale_grid
from .batched import Batched, Kept, one_thread_each
from .config import Attention, Experts, Mlp, ModelConfig
from .decoder import decoder, every_expert
from .inventory import take_inventory
from .to_torch import TorchOps, finished_logits

SEQUENCES_PER_STEP = 4
LEARNING_RATE = 1e-3  # of scales relative to where they start; Adam moves each by about so much in a step
_BETAS = (0.9, 0.95)
_WARM_UP = 5  # steps
_LAST = 0.1  # of the learning rate is left at the end
_AT_ONCE = 32  # sequences that the source reads together
_LOGITS_AT_ONCE = 64  # tokens: a vocabulary's worth of logits for each, several times
_HELD = 64  # tensors that are not trained: embedding, head, biases

Names = tuple[str, ...]


@dataclass(frozen=True)
class _Trained:
    """What is trained, by the weights' names: relative changes of scales (out, groups), and of norms (width,).

    The head (vocabulary, width) stays as it is; products are computed in ``kind``.
    """

    codes: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    head_name: str
    head: Tensor
    kind: torch.dtype


def tune(
    source: Weights,
    quantised: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    step: Callable[[], None],
    threads: int,
    learning_rate: float = LEARNING_RATE,
) -> dict[str, CanonicalTensor]:
    """Linears with tuned scales, on the grid, and tuned norms, on fp16's; everything else is to stay as it is.

    source     in fp32; its factors may stand elsewhere, as the two are compared by their logits
    quantised  canonical weights
    tokens     ids to learn from (sequences, tokens), SEQUENCES_PER_STEP at a time
    step       called ``tuning_steps`` times
    """
    trained = _start(quantised, config)
    parameters = list(trained.changes.values())
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, betas=_BETAS)
    batches = [tokens[start : start + SEQUENCES_PER_STEP] for start in range(0, len(tokens), SEQUENCES_PER_STEP)]
    with ThreadPoolExecutor(threads) as pool, one_thread_each():
        wanted: list[Tensor] = []
        for start in range(0, len(tokens), _AT_ONCE):
            wanted += _last_hidden(source, config, tokens[start : start + _AT_ONCE], pool)
        step()
        head = torch.from_numpy(np.array(source[config.head_name], np.float32)).to(trained.kind)
        fixed = Kept(quantised, _HELD, dense=False)

        def gradients(index: int) -> tuple[Tensor, ...]:
            return _gradients(tokens[index], wanted[index], head, trained, fixed, config)

        first = 0
        for number, batch in enumerate(batches):
            rate = learning_rate * min(1, (number + 1) / _WARM_UP)
            optimiser.param_groups[0]["lr"] = rate * (_LAST + (1 - _LAST) * (1 - number / len(batches)))
            found = list(pool.map(gradients, range(first, first + len(batch))))
            for parameter, *parts in zip(parameters, *found, strict=True):
                parameter.grad = sum(parts[1:], parts[0]) / len(parts)  # in one order, whatever the threads
            optimiser.step()
            first += len(batch)
            step()
    return _finish(trained, quantised)


def tuning_steps(sequences: int) -> int:
    """How often ``tune`` calls its ``step``."""
    return 1 + -(-sequences // SEQUENCES_PER_STEP)


def _start(quantised: Weights, config: ModelConfig) -> _Trained:
    codes, scales, norms = {}, {}, {}
    for name in take_inventory(config).weights:
        tensor = quantised[name]
        if isinstance(tensor, QuantizedTensor) and name not in ("model.embed_tokens.weight", config.head_name):
            codes[name], scales[name] = torch.from_numpy(tensor.codes), torch.from_numpy(tensor.scales)
        elif name.endswith("norm.weight") and not name.endswith(("q_norm.weight", "k_norm.weight")):
            assert not isinstance(tensor, QuantizedTensor), f"{name} is never quantised"
            norms[name] = torch.from_numpy(np.array(tensor, np.float32))
    changes = {name: torch.zeros_like(value, requires_grad=True) for name, value in (scales | norms).items()}
    head, kind = quantised[config.head_name], _product_type()
    dense = head.dequantize() if isinstance(head, QuantizedTensor) else head
    return _Trained(codes, scales, norms, changes, config.head_name, torch.from_numpy(np.array(dense)).to(kind), kind)


def _finish(trained: _Trained, quantised: Weights) -> dict[str, CanonicalTensor]:
    result: dict[str, CanonicalTensor] = {}
    with torch.inference_mode():
        for name, scales in trained.scales.items():
            tensor = quantised[name]
            assert isinstance(tensor, QuantizedTensor)
            tuned = to_scale_grid((scales * (1 + trained.changes[name])).numpy())
            result[name] = QuantizedTensor(tensor.codes, tuned, tensor.bits)
        for name, norm in trained.norms.items():
            result[name] = (norm * (1 + trained.changes[name])).numpy().astype(np.float16)
    return result


def _last_hidden(
    source: Weights, config: ModelConfig, tokens: NDArray[np.int64], pool: ThreadPoolExecutor
) -> tuple[Tensor, ...]:
    """What the source's head sees: (1, tokens, width) for each sequence."""
    with torch.inference_mode():
        kept = Kept(source)
        batched = Batched(lambda index: TorchOps(kept, config, tokens.shape[1]), pool, skipped=(config.head_name,))
        return tuple(x.clone() for x in decoder(batched, config, tuple(torch.from_numpy(row[None]) for row in tokens)))


def _gradients(
    tokens: NDArray[np.int64], wanted: Tensor, head: Tensor, trained: _Trained, fixed: Weights, config: ModelConfig
) -> tuple[Tensor, ...]:
    """Gradients of the mean KL(source || quantised) over one sequence, for each of ``trained.changes``."""
    ops = _TunedOps(TorchOps(fixed, config, len(tokens)), fixed, trained)
    hidden = decoder(ops, config, torch.from_numpy(tokens[None]))  # (1, tokens, width)

    def log_probabilities(x: Tensor, weight: Tensor) -> Tensor:
        logits = _with_bias(_scaled_linear(x, weight, None, trained.kind), fixed, config.head_name)
        return torch.log_softmax(finished_logits(logits, config), -1)

    def to_hidden(wanted_part: Tensor, part: Tensor) -> Tensor:
        part = part.detach().requires_grad_()
        with torch.no_grad():
            expected = log_probabilities(wanted_part, head)
        loss = (expected.exp() * (expected - log_probabilities(part, trained.head))).sum() / len(tokens)
        return torch.autograd.grad(loss, part)[0]

    pairs = zip(wanted.split(_LOGITS_AT_ONCE, 1), hidden.split(_LOGITS_AT_ONCE, 1), strict=True)
    gradient = torch.cat([to_hidden(*pair) for pair in pairs], 1)
    return torch.autograd.grad(hidden, list(trained.changes.values()), gradient)


class _ScaledLinear(torch.autograd.Function):
    """x @ (codes * scales).T, with gradients for x and the scales; the weight is made again for the backward pass.

    Products are computed in ``kind``, everything else in the inputs' own type. With scales None, codes are a weight.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, codes: Tensor, scales: Tensor | None, kind: torch.dtype) -> Tensor:
        narrow = x.to(kind)
        context.save_for_backward(narrow, codes, scales)
        return (narrow @ _dequantised(codes, scales, kind).T).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        (gradient,), (x, codes, scales) = gradients, context.saved_tensors
        narrow = gradient.to(x.dtype)
        to_x = (narrow @ _dequantised(codes, scales, x.dtype)).to(gradient.dtype)
        if scales is None:
            return to_x, None, None, None
        to_weight = (narrow.flatten(0, -2).T @ x.flatten(0, -2)).to(scales.dtype)  # (out, in)
        grouped = codes.view(*scales.shape, -1)  # (out, groups, group)
        return to_x, None, (to_weight.view(grouped.shape) * grouped).sum(-1), None


def _dequantised(codes: Tensor, scales: Tensor | None, kind: torch.dtype) -> Tensor:
    if scales is None:
        return codes.to(kind)
    return (codes.view(*scales.shape, -1).to(kind) * scales.to(kind)[:, :, None]).view(codes.shape)


_scaled_linear: Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor] = _ScaledLinear.apply


def _product_type() -> torch.dtype:
    """bfloat16 where the processor multiplies it: three times as fast, and final scales are bfloat16 anyway."""
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if fast else torch.float32


def _with_bias(x: Tensor, weights: Weights, name: str) -> Tensor:
    bias = bias_of(weights, name)
    return x if bias is None else x + torch.from_numpy(np.array(bias, np.float32))


class _TunedOps:
    """An Ops that computes with what is trained, and leaves everything else to another one.

    The head gives back its input: its logits are computed some tokens at a time.
    """

    def __init__(self, ops: TorchOps, fixed: Weights, trained: _Trained) -> None:
        self._ops = ops
        self._fixed = fixed
        self._trained = trained

    def embed(self, tokens: Tensor, name: str) -> Tensor:
        """See Ops."""
        return self._ops.embed(tokens, name)

    def linear(self, x: Tensor, names: Names) -> Tensor:
        """See Ops."""
        parts = [self._one_linear(x, name) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _one_linear(self, x: Tensor, name: str) -> Tensor:
        if name == self._trained.head_name:
            return x
        if name not in self._trained.scales:
            return self._ops.linear(x, (name,))
        scales = self._trained.scales[name] * (1 + self._trained.changes[name])
        result = _scaled_linear(x, self._trained.codes[name], scales, self._trained.kind)
        return _with_bias(result, self._fixed, name)

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops. The norm's own weight is part of what is trained."""
        return self._ops.rms_norm(x, name, epsilon) * (1 + self._trained.changes[name])

    def add_norm(self, x: Tensor, residual: Tensor, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """See Ops."""
        total = x + residual
        return self.rms_norm(total, name, epsilon), total

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops. The weight is part of what is trained, the bias is not."""
        bias = torch.from_numpy(np.array(bias_of(self._fixed, name), np.float32))
        return (self._ops.layer_norm(x, name, epsilon) - bias) * (1 + self._trained.changes[name]) + bias

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """See Ops."""
        return x + y

    def scale(self, x: Tensor, factor: float, name: str) -> Tensor:
        """See Ops."""
        return x if name == "logits" else x * factor

    def soft_cap(self, x: Tensor, cap: float, name: str) -> Tensor:
        """See Ops."""
        return x if name == "logits" else self._ops.soft_cap(x, cap, name)

    def add_positions(self, x: Tensor, name: str) -> Tensor:
        """See Ops."""
        return self._ops.add_positions(x, name)

    def attention(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """See Ops."""
        return self._ops.attention(qkv, layer, attention)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops."""
        return self._ops.gated(gate_up, activation)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See Ops."""
        return self._ops.activate(x, activation)

    def experts(self, x: Tensor, layer: int, mlp: Mlp) -> Tensor:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Tensor, layer: int, experts: Experts) -> Tensor:
        """See Ops."""
        return self._ops.route(logits, layer, experts)

    def weigh(self, x: Tensor, weights: Tensor, layer: int, expert: int) -> Tensor:
        """See Ops."""
        return self._ops.weigh(x, weights, layer, expert)

    def last_token(self, x: Tensor) -> Tensor:
        """See Ops."""
        return self._ops.last_token(x)
