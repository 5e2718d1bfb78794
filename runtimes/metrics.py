"""How far two sets of logits are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 16  # positions that are widened to float64 at a time: a vocabulary of 262144 then takes 32 MB an array


@dataclass(frozen=True)
class Deviation:
    """One set of logits against another, over some positions.

    max_abs_logit  largest difference of a logit
    kl             mean Kullback-Leibler divergence KL(expected || actual), nats
    top1           share of positions with the same most likely token
    """

    max_abs_logit: float
    kl: float
    top1: float


def deviation(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> Deviation:
    """Compare logits (..., vocab_size); a value that is not finite makes everything infinitely far apart."""
    vocab_size = expected.shape[-1]
    left, right = expected.reshape(-1, vocab_size), actual.reshape(-1, vocab_size)
    if left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return Deviation(float("inf"), float("inf"), 0.0)
    largest, total, same = 0.0, 0.0, 0
    for start in range(0, len(left), _ROWS):
        a, b = left[start : start + _ROWS].astype(np.float64), right[start : start + _ROWS].astype(np.float64)
        largest = max(largest, float(np.abs(a - b).max()))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        log_a, log_b = log_softmax(a), log_softmax(b)
        total += float((np.exp(log_a) * (log_a - log_b)).sum())
    return Deviation(largest, max(0.0, total / len(left)), same / len(left))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def negative_log_likelihood(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> float:
    """Mean over the next tokens, nats: logits (batch, tokens, vocab_size) for token ids (batch, tokens)."""
    total = 0.0
    for row, ids in zip(logits, tokens, strict=True):
        for start in range(0, len(ids) - 1, _ROWS):
            stop = min(start + _ROWS, len(ids) - 1)
            likelihood = log_softmax(row[start:stop].astype(np.float64))
            total -= float(likelihood[np.arange(stop - start), ids[start + 1 : stop + 1]].sum())
    return total / float(tokens.shape[0] * (tokens.shape[1] - 1))


def perplexity_ratio(expected: NDArray[np.float32], actual: NDArray[np.float32], tokens: NDArray[np.int64]) -> float:
    """Perplexity of ``actual`` on the text over that of ``expected``: 1.1 is 10 % worse."""
    difference = negative_log_likelihood(actual, tokens) - negative_log_likelihood(expected, tokens)
    return float(np.exp(difference))
