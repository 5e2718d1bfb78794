"""How much of a model's quality quantised weights keep on a text: perplexity, KL, top-1 agreement, errors by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.store import Weights
from .metrics import log_softmax

_LOGITS = 1 << 26  # values of one set of logits at a time: 256 MB
_ROWS = 64  # positions widened to float64 at a time
_Z = 1.96  # standard errors either side of a mean: 95 %


@dataclass(frozen=True)
class Interval:
    """A mean over sequences and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """Of one set of weights on a text.

    perplexity        of the text
    kl                KL(source || these weights), nats; None without a source, as the following
    top1              share of positions with the source's most likely token
    perplexity_ratio  perplexity over the source's: 1.1 is 10 % worse
    """

    perplexity: Interval
    kl: Interval | None = None
    top1: Interval | None = None
    perplexity_ratio: Interval | None = None


@dataclass
class _Sums:
    """One mean for each sequence, of each thing measured."""

    loss: list[float]
    kl: list[float]
    top1: list[float]


def measure_quality(
    weights: Mapping[str, Weights],
    config: ModelConfig,
    tokens: NDArray[np.int64],
    source: str | None,
    step: Callable[[], None],
) -> dict[str, Quality]:
    """Quality of several sets of weights on token ids (sequences, tokens), all computed by the fp32 reference.

    source  which of them is the one to compare with, or None
    step    called ``quality_steps`` times
    """
    from ..export.to_torch import reference_logits

    sums = {name: _Sums([], [], []) for name in weights}
    order = sorted(weights, key=lambda name: name != source)  # the source first
    for start, stop in _pieces(tokens, config):
        part, expected = tokens[start:stop], None
        for name in order:
            logits = reference_logits(weights[name], config, part)
            if name == source:
                expected = logits
            _add(sums[name], part, logits, expected)
            step()
    base = None if source is None else np.array(sums[source].loss)
    return {name: _quality(found, base) for name, found in sums.items()}


def quality_steps(count: int, config: ModelConfig, tokens: NDArray[np.int64]) -> int:
    """How often ``measure_quality`` calls its ``step`` for ``count`` sets of weights."""
    return count * len(_pieces(tokens, config))


def _pieces(tokens: NDArray[np.int64], config: ModelConfig) -> list[tuple[int, int]]:
    size = max(1, _LOGITS // (tokens.shape[1] * config.vocab_size))
    return [(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)]


def _add(
    sums: _Sums, tokens: NDArray[np.int64], logits: NDArray[np.float32], expected: NDArray[np.float32] | None
) -> None:
    for row, ids in enumerate(tokens):
        loss = kl = same = 0.0
        for start in range(0, len(ids), _ROWS):
            actual = log_softmax(logits[row, start : start + _ROWS].astype(np.float64))
            following = ids[start + 1 : start + 1 + _ROWS]
            loss -= float(actual[np.arange(len(following)), following].sum())
            if expected is not None:
                wanted = log_softmax(expected[row, start : start + _ROWS].astype(np.float64))
                kl += float((np.exp(wanted) * (wanted - actual)).sum())
                same += float((wanted.argmax(-1) == actual.argmax(-1)).sum())
        sums.loss.append(loss / (len(ids) - 1))
        sums.kl.append(kl / len(ids))
        sums.top1.append(same / len(ids))


def _quality(sums: _Sums, base: NDArray[np.float64] | None) -> Quality:
    loss = np.array(sums.loss)
    perplexity = _exponential(interval(loss))
    if base is None:
        return Quality(perplexity)
    return Quality(perplexity, interval(sums.kl), interval(sums.top1), _exponential(interval(loss - base)))


def interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Mean of values that do not depend on each other, with the interval that their spread gives it."""
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    margin = _Z * float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else float("inf")
    return Interval(mean, mean - margin, mean + margin)


def _exponential(found: Interval) -> Interval:
    return Interval(float(np.exp(found.mean)), float(np.exp(found.low)), float(np.exp(min(found.high, 700.0))))


def layer_errors(source: Weights, weights: Weights, config: ModelConfig, tokens: NDArray[np.int64]) -> dict[str, float]:
    """Relative error |a - b| / |a| of the output of each linear, attention and norm, by the name a Recorder hears.

    Each is the error of the whole model up to there. The head's output is left out.
    """
    import torch

    from ..export.decoder import decoder
    from ..export.recorder import Recorder
    from ..export.to_torch import TorchOps

    heard: list[dict[str, torch.Tensor]] = []
    for each in (source, weights):
        outputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            ops = TorchOps(each, config, tokens.shape[1])
            decoder(Recorder(ops, outputs.__setitem__), config, torch.from_numpy(tokens))
        heard.append(outputs)
    expected, actual = heard
    return {
        name: float((actual[name] - value).norm() / value.norm().clamp_min(1e-30))
        for name, value in expected.items()
        if value.shape[-1] != config.vocab_size
    }
