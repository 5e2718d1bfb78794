"""Choosing the next token from logits: the rules of transformers' ``generate``, and random numbers that every
language of the apps can reproduce."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_HEAD = 1024  # sorting a whole vocabulary takes as long as a small model takes for a token; its head is mostly enough


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, with the names and meanings of transformers' GenerationConfig.

    temperature         divides the logits; 0 takes the most likely token, the lowest id among equals
    top_k               keeps the k most likely tokens and those tied with the last of them; 0 keeps all
    top_p               keeps the most likely tokens up to and including the one that reaches this probability
    min_p               keeps tokens at least this many times as likely as the most likely one
    repetition_penalty  divides positive and multiplies negative logits of tokens that occurred, prompt included
    seed                of the random numbers, within [0, 2**64)

    Raises InputError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(0 <= self.temperature < math.inf, "temperature", "a number of at least 0", self.temperature)
        _check(self.top_k >= 0, "top_k", "a whole number of at least 0 (0 keeps all tokens)", self.top_k)
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p)
        _check(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0", self.repetition_penalty)
        _check(0 <= self.seed < 1 << 64, "seed", "a whole number of at least 0 and below 2**64", self.seed)


def _check(valid: bool, name: str, rule: str, value: float) -> None:
    if not valid:
        raise InputError(f"{name} must be {rule}; it is {value}")


def uniforms(seed: int) -> Iterator[float]:
    """Endless random numbers in [0, 1), multiples of 2**-53: equal seeds give equal numbers in every language.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the constants are
    those of java.util.SplittableRandom). Number i is a function of seed + (i + 1) * gamma alone.
    """
    mask = (1 << 64) - 1
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        yield ((mixed ^ (mixed >> 31)) >> 11) * 2.0**-53


def sample(logits: NDArray[np.float32], sampling: Sampling, history: Sequence[int], random: Iterator[float]) -> int:
    """The next token. ``history`` holds all tokens so far; ``random`` (see ``uniforms``) gives one number a call.

    The draw inverts the cumulative distribution over the candidates in descending order of probability, the lower id
    first among equals, in float64: the token is the first whose cumulative weight exceeds random * total weight.
    With temperature 0 nothing is drawn.

    Raises InputError if the logits are not numbers.
    """
    scores = _penalised(logits, sampling.repetition_penalty, history)
    if sampling.temperature == 0:
        return int(scores.argmax())
    ids, weights = _candidates(scores / sampling.temperature, sampling)
    drawn = next(random)
    order, cumulative = _descending(weights, drawn)
    chosen = np.searchsorted(cumulative, drawn * weights.sum(), side="right")
    return int(ids[order[min(int(chosen), len(order) - 1)]])


def probabilities(logits: NDArray[np.float32], sampling: Sampling, history: Sequence[int]) -> NDArray[np.float64]:
    """What ``sample`` draws from at a temperature above 0, float64 (vocab_size,): 0 for tokens that cannot come."""
    ids, weights = _candidates(
        _penalised(logits, sampling.repetition_penalty, history) / sampling.temperature, sampling
    )
    result = np.zeros(logits.shape, np.float64)
    result[ids] = weights / weights.sum()
    return result


def _penalised(logits: NDArray[np.float32], penalty: float, history: Sequence[int]) -> NDArray[np.float64]:
    """Logits in float64 with the repetition penalty (Keskar et al. 2019, CTRL)."""
    scores = logits.astype(np.float64)
    # A maximum is NaN if any value is; -inf alone is fine, it marks a token that must not come.
    if not math.isfinite(scores.max()):
        raise InputError("the model returned logits that are not finite numbers; run `pocketlm verify` on the bundle")
    if penalty != 1 and len(history):
        seen = np.unique(np.asarray(history, np.int64))
        seen = seen[seen < len(scores)]
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _candidates(scores: NDArray[np.float64], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may come, and their weights relative to the most likely one; in transformers' order of filters."""
    ids = np.arange(len(scores))
    if 0 < sampling.top_k < len(ids):
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        ids = ids[scores >= least]
    weights = np.exp(scores[ids] - scores.max())
    if sampling.top_p < 1:
        order, cumulative = _descending(weights, sampling.top_p)
        before = np.concatenate(([0.0], cumulative[:-1]))
        kept = np.sort(order[before < sampling.top_p * weights.sum()])
        ids, weights = ids[kept], weights[kept]
    likely = weights >= sampling.min_p
    return ids[likely], weights[likely]


def _descending(weights: NDArray[np.float64], mass: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions of the largest weights, largest first and the lower position first among equals, and their running
    sum; enough of them to exceed ``mass`` of the total, or all."""
    positions = np.arange(len(weights))
    if len(weights) > _HEAD:
        head = positions[weights >= np.partition(weights, -_HEAD)[-_HEAD]]
        if weights[head].sum() > mass * weights.sum():
            positions = head
    order = positions[np.argsort(-weights[positions], kind="stable")]
    return order, np.cumsum(weights[order])
