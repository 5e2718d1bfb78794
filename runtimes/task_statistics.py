"""How sure one can be of a share, and of the difference of two shares of the same questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import comb, sqrt

from .quality import Interval

_Z = 1.959963984540054  # standard errors either side: 95 %


def wilson(right: int, count: int) -> Interval:
    """A share with its 95 % interval (E. B. Wilson, "Probable Inference", 1927), sound for few answers and near 0 or 1.

    Needs ``count`` > 0.
    """
    share, z2 = right / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class Paired:
    """Two sides on the same questions.

    p_value  of the exact two-sided McNemar test: how often chance alone would split the questions that only one side
             got right as unevenly, or more so, if both were equally good
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def paired(answers: Iterable[tuple[bool, bool]]) -> Paired:
    """Count (first right, second right) and test (Q. McNemar 1947, with the binomial distribution itself)."""
    counts = {(first, second): 0 for first in (True, False) for second in (True, False)}
    for answer in answers:
        counts[answer] += 1
    first, second = counts[True, False], counts[False, True]
    return Paired(counts[True, True], first, second, counts[False, False], mcnemar(first, second))


def mcnemar(first: int, second: int) -> float:
    """Two-sided p-value when ``first`` questions were right on one side only and ``second`` on the other only."""
    count = first + second
    tail = sum(comb(count, k) for k in range(min(first, second) + 1))
    return min(1.0, float(2 * tail / 2**count))
