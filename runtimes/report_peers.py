"""Answers of a bundle beside those of a peer: what `pocketlm eval --tasks --json` found, checked and put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Share:
    """Right answers out of ``count``, as a share with the ends of its 95 % interval."""

    right: int
    count: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One model that was asked: shares by the kind of question, bits per byte of running text, and what answers cost.

    costs  as the file names them; what was not measured is left out
    """

    name: str
    shares: Mapping[str, Share]
    bits_per_byte: float | None
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Peers:
    """A task, the sides that were asked, and lines that must be shown with them."""

    task: str
    items: int
    sides: tuple[Side, ...]
    lines: tuple[str, ...]


SHARES: Mapping[str, str] = {
    "choices": "choices right",
    "choices_by_length": "choices right, by log-likelihood a character",
    "answers": "short answers right",
}
COSTS: tuple[tuple[str, str, float, int], ...] = (
    ("seconds_per_answer", "seconds an answer", 1, 3),
    ("tokens_per_second", "tokens/s, read and written", 1, 0),
    ("peak_memory_bytes", "peak memory of the process, MB", 1e-6, 0),
    ("joules_per_answer", "joules an answer, processors", 1, 2),
    ("price_of_1000_answers", "price of 1,000 answers", 1, 4),
)


def is_peers(content: Any) -> bool:
    """Whether a file's content is that of `eval --tasks`, not of `eval --text`."""
    return isinstance(content, dict) and "sides" in content


def read_peers(content: Mapping[str, Any]) -> Peers:
    """Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    sides = tuple(map(_side, content["sides"]))
    if not sides:
        raise ValueError("nobody was asked")
    task = content["task"]
    lines = [*_paired(content["paired"], sides), *(_text(note) for note in content["notes"])]
    return Peers(_text(task["name"]), int(_number(task["items"])), sides, tuple(lines))


def _side(content: Mapping[str, Any]) -> Side:
    bits, cost = content["bits_per_byte"], content["cost"] or {}
    return Side(
        _text(content["name"]),
        {kind: _share(content[kind]) for kind in SHARES if content.get(kind) is not None},
        None if bits is None else _number(bits["mean"]),
        {key: _number(cost[key]) for key, *_ in COSTS if cost.get(key) is not None},
    )


def _share(content: Mapping[str, Any]) -> Share:
    right, count = (int(_number(content[key])) for key in ("right", "count"))
    low, mean, high = (_number(content["accuracy"][key]) for key in ("low", "mean", "high"))
    if not 0 <= low <= mean <= high <= 1:
        raise ValueError(f"{mean} within {low} and {high} is no share")
    return Share(right, count, mean, low, high)


def _paired(content: Mapping[str, Mapping[str, Any]], sides: tuple[Side, ...]) -> list[str]:
    lines = []
    for kind, found in content.items():
        if "p_value" in found:
            both, first, second, neither = (
                int(_number(found[key])) for key in ("both", "only_first", "only_second", "neither")
            )
            lines.append(
                f"{_text(kind)}: both right {both}, only {sides[0].name} {first}, only {sides[1].name} {second}, "
                f"neither {neither}; exact McNemar test p = {_number(found['p_value']):.3g}."
            )
    return lines


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)
