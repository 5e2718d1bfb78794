"""Rotary position embedding: what config.json says about it, and the tables that every target stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .config_values import number, positive


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling (transformers' ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and how frequencies are stretched for long contexts.

    rotated         columns of a head that turn; None is all. The others are paired behind them (see ``layouts``), so
                    that a partial rotation is a whole one whose last pairs have the frequency 0
    divisors        LongRoPE: what each frequency is divided by (Ding et al. 2024)
    magnitude       multiplies cosines and sines of what turns
    """

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None
    rotated: int | None = None
    divisors: tuple[float, ...] | None = None
    magnitude: float = 1.0


def parse_rope(raw: Mapping[str, Any], head_dim: int, context: int, kind: str = "") -> Rope:
    """The rotation of layers of one ``kind`` (an entry of ``layer_types``), for artifacts that hold ``context`` tokens.

    transformers 5 writes ``rope_parameters``, one for all layers or one for each kind; older files have ``rope_theta``
    and ``rope_scaling``.
    """
    parameters = _rope_parameters(raw, kind)
    theta = number(parameters, "rope_theta", 10000.0)
    fraction = number(parameters, "partial_rotary_factor", 1.0)
    rotated = int(head_dim * min(fraction, 2.0))
    if not 0 < rotated <= head_dim or rotated % 2:
        raise InputError(f"config.json: {fraction} of {head_dim} columns cannot be rotated in pairs")
    part = None if rotated == head_dim else rotated
    name = parameters.get("rope_type", parameters.get("type", "default"))
    if name == "default":
        return Rope(theta, rotated=part)
    if name == "linear":
        return Rope(theta, linear_factor=number(parameters, "factor", 1.0), rotated=part)
    if name == "llama3":
        return Rope(theta, llama3=_parse_llama3(parameters), rotated=part)
    if name in ("longrope", "su"):
        return _parse_longrope(raw, parameters, theta, rotated, part, context)
    raise InputError(
        f"config.json: rope type {name!r} is not supported; supported are: default, linear, llama3, longrope"
    )


def _rope_parameters(raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
    _check_one_scaling(raw)
    parameters: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"config.json: {key} must be an object, it is {given!r}")
        given = given or {}
        if any(isinstance(value, Mapping) for value in given.values()):
            if not isinstance(given.get(kind), Mapping):
                raise InputError(f"config.json: {key} has nothing for layers of the kind {kind!r}")
            given = given[kind]
        parameters |= given
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if raw.get(key) is not None:
            parameters.setdefault(key, raw[key])
    return parameters


def _check_one_scaling(raw: Mapping[str, Any]) -> None:
    """Both spellings of the scaling may be there if they agree: which one a program goes by differs."""
    old, new = raw.get("rope_scaling"), raw.get("rope_parameters")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    alias = {"type": "rope_type"}
    stated = {alias.get(key, key): value for key, value in old.items() if value is not None}
    other = {alias.get(key, key): value for key, value in new.items()}
    wrong = [key for key, value in stated.items() if other.get(key, value if key == "rope_theta" else None) != value]
    if wrong:
        raise InputError(
            f"config.json: rope_scaling and rope_parameters differ in {wrong[0]}; remove the one that is wrong"
        )


def _parse_llama3(parameters: Mapping[str, Any]) -> Llama3Scaling:
    return Llama3Scaling(
        factor=number(parameters, "factor", 8.0),
        low_freq_factor=number(parameters, "low_freq_factor", 1.0),
        high_freq_factor=number(parameters, "high_freq_factor", 4.0),
        original_max_position_embeddings=positive(parameters, "original_max_position_embeddings"),
    )


def _parse_longrope(
    raw: Mapping[str, Any], parameters: Mapping[str, Any], theta: float, rotated: int, part: int | None, context: int
) -> Rope:
    """LongRoPE has two sets of divisors, the second for more tokens than the model was first trained on.

    transformers changes sets when a text grows past that; keys that were cached are then rotated by the other set. An
    artifact has one set: the one for the tokens that its cache holds.
    """
    original = positive(parameters, "original_max_position_embeddings")
    key = "long_factor" if context > original else "short_factor"
    divisors = parameters.get(key)
    if not isinstance(divisors, list) or len(divisors) != rotated // 2:
        raise InputError(f"config.json: {key} must list {rotated // 2} numbers")
    divisors = [number({key: divisor}, key, 1.0) for divisor in divisors]
    stretched = positive(raw, "max_position_embeddings") / original
    factor = number(parameters, "factor", 1.0) if parameters.get("factor") else stretched
    if original == 1:
        raise InputError("config.json: original_max_position_embeddings must be more than 1")
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    magnitude = usual if parameters.get("attention_factor") is None else number(parameters, "attention_factor", usual)
    return Rope(theta, divisors=tuple(divisors), magnitude=magnitude, rotated=part)


def inverse_frequencies(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    """Rotation per position of each pair of columns that turns, radians, float32 (rotated / 2,).

    Computed in float32 as transformers does (RoFormer, Su et al. 2021; ``ROPE_INIT_FUNCTIONS`` there).
    """
    width = rope.rotated or head_dim
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    if rope.divisors is not None:
        powers *= np.array(rope.divisors, np.float32)
    frequencies = (np.float32(1.0) / powers / np.float32(rope.linear_factor)).astype(np.float32)
    return frequencies if rope.llama3 is None else _llama3_frequencies(frequencies, rope.llama3)


def _llama3_frequencies(frequencies: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Slow rotations are divided by ``factor``, fast ones kept, those between interpolated."""
    wavelengths = 2 * np.pi / frequencies
    context = scaling.original_max_position_embeddings
    smooth = (context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    slow = wavelengths > context / scaling.low_freq_factor
    fast = wavelengths < context / scaling.high_freq_factor
    result: NDArray[np.float32] = np.where(
        slow, frequencies / scaling.factor, np.where(fast, frequencies, between)
    ).astype(np.float32)
    return result


def rotary_tables(rope: Rope, head_dim: int, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines for positions 0 .. context - 1, each float32 (context, head_dim / 2)."""
    angles = np.arange(context, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)[None]
    magnitude = np.float32(rope.magnitude)
    resting = ((0, 0), (0, head_dim // 2 - angles.shape[1]))
    cosines = np.pad(np.cos(angles) * magnitude, resting, constant_values=1)
    return cosines, np.pad(np.sin(angles) * magnitude, resting)
