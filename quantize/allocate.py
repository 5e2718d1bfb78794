"""Spending a budget of bytes where it buys the most: which layer gets which format."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .recipe import Format


@dataclass(frozen=True)
class Choice:
    """One format that a layer may have: its size in bytes, and what the model loses by it (KL, nats)."""

    format: Format
    size_bytes: int
    kl: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, Choice] | None:
    """One choice for each layer, together within the budget, that lose little in sum; None if nothing fits.

    Losses of layers are taken to add up. Starts with the smallest formats and takes the upgrade with the largest gain
    for a byte, again and again: the optimum but for the last upgrade that no longer fits (Everett 1963, Lagrange
    multipliers for discrete choices).
    """
    hulls = {name: _lower_hull(options) for name, options in choices.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget_bytes - sum(choice.size_bytes for choice in chosen.values())
    if left < 0:
        return None
    upgrades = [
        (-_gain(before, after), name, index)
        for name, hull in hulls.items()
        for index, (before, after) in enumerate(pairwise(hull), 1)
    ]
    heapq.heapify(upgrades)
    blocked: set[str] = set()  # an upgrade of theirs did not fit, so those behind it do not either
    while upgrades:
        _, name, index = heapq.heappop(upgrades)
        cost = hulls[name][index].size_bytes - hulls[name][index - 1].size_bytes
        if name in blocked or cost > left:
            blocked.add(name)
            continue
        left -= cost
        chosen[name] = hulls[name][index]
    return chosen


def _gain(before: Choice, after: Choice) -> float:
    """KL saved for each byte more."""
    return (before.kl - after.kl) / (after.size_bytes - before.size_bytes)


def _lower_hull(options: Sequence[Choice]) -> list[Choice]:
    """The choices from the smallest on that no mixture of two others beats; gains along them only fall."""
    hull: list[Choice] = []
    for option in sorted(options, key=lambda choice: (choice.size_bytes, choice.kl)):
        if hull and option.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull
