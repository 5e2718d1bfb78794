"""What `pocketlm plan --json` estimated for named phones, checked for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Range:
    """The ends of an estimate."""

    low: float
    high: float


@dataclass(frozen=True)
class PlannedDevice:
    """One target on one device: bytes that it needs of those that an app may use, and what that comes to."""

    name: str
    target: str
    needed_bytes: float
    limit_bytes: float
    verdict: str
    first_token_seconds: Range
    tokens_per_second: Range
    joules_per_token: Range


@dataclass(frozen=True)
class Plan:
    """A plan for a model, a recipe and a context, which need not be those of a bundle."""

    model: str
    recipe: str
    context: int
    devices: tuple[PlannedDevice, ...]


def read_plan(content: Mapping[str, Any]) -> Plan:
    """Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    devices = tuple(map(_device, content["devices"]))
    return Plan(_text(content["model"]), _text(content["recipe"]), int(_number(content["context"])), devices)


def _device(content: Mapping[str, Any]) -> PlannedDevice:
    ranges = (_range(content[key]) for key in ("first_token_seconds", "tokens_per_second", "joules_per_token"))
    first, rate, energy = ranges
    return PlannedDevice(
        name=_text(content["name"]),
        target=_text(content["target"]),
        needed_bytes=_number(content["needed_bytes"]),
        limit_bytes=_number(content["limit_bytes"]),
        verdict=_text(content["verdict"]),
        first_token_seconds=first,
        tokens_per_second=rate,
        joules_per_token=energy,
    )


def _range(content: Mapping[str, Any]) -> Range:
    return Range(_number(content["low"]), _number(content["high"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value) or value < 0:
        raise TypeError(f"{value!r} is no number of at least 0")
    return float(value)
