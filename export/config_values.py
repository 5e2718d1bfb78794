"""Numbers out of a config.json, checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..errors import InputError


def positive(raw: Mapping[str, Any], key: str, most: int = 2**31 - 1) -> int:
    """A whole number from 1 to ``most``; raises InputError for anything else."""
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        limit = "" if most == 2**31 - 1 else f" up to {most}"
        raise InputError(f"config.json: {key} must be a positive whole number{limit}, it is {value!r}")
    return value


def number(raw: Mapping[str, Any], key: str, default: float) -> float:
    """A positive, finite number; raises InputError for anything else."""
    value = raw.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise InputError(f"config.json: {key} must be a positive number, it is {value!r}")
    return float(value)


def flag(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    """true or false; raises InputError for anything else, as "false" is no false. null is false, as in transformers."""
    value = raw.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"config.json: {key} must be true or false, it is {value!r}")
    return bool(value)


def optional_number(raw: Mapping[str, Any], key: str) -> float | None:
    """A positive, finite number, or None where the key is missing or null."""
    return None if raw.get(key) is None else number(raw, key, 1.0)


def index_list(raw: Mapping[str, Any], key: str) -> list[int]:
    """Whole numbers from 0 on; none where the key is missing or null."""
    value = [] if raw.get(key) is None else raw[key]
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise InputError(f"config.json: {key} must list numbers of layers, it is {value!r}")
    return value


def whole_list(raw: Mapping[str, Any], key: str, length: int) -> list[int]:
    """``length`` positive whole numbers, one for each layer; a single number stands for all of them."""
    value = raw.get(key)
    values = value if isinstance(value, list) else [value] * length
    if len(values) != length:
        raise InputError(f"config.json: {key} has {len(values)} entries for {length} layers")
    return [positive({key: item}, key) for item in values]
