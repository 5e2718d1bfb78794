"""A recipe that fits a budget: each group of linears gets the format that the model's quality is best served by."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..export.checkpoint import Checkpoint
from ..export.inventory import take_inventory
from ..quantize.allocate import Choice, allocate
from ..quantize.recipe import Format, Recipe
from ..quantize.rtn import relative_error, round_to_nearest
from .judge import CheckpointWeights
from .progress import Progress
from .quantise_model import Source

Names = tuple[str, ...]

_FORMATS = (Format("int4", 128), Format("int4", 64), Format("int4", 32), Format("int8"))
_SEQUENCES, _TOKENS = 4, 128  # read for the sensitivities: their ranking is steady from about 300 tokens on
_ROWS = 256  # of each weight that errors of formats are compared on
_LARGEST = 1e18  # number in front of a unit: nobody has more, and a float may overflow
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Budget:
    """At most so many bits for each weight of the linears, scales included, or bytes for all weights; one is None."""

    bits: float | None = None
    size_bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.bits:g}-bits" if self.bits is not None else f"{(self.size_bytes or 0) / 1e6:g}MB"


def parse_size(text: str) -> int:
    """Bytes of a size like 90MB, 1.5GB or 90000000; raises InputError if it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)b?\s*", text.lower())
    if match is None or not 0 < float(match.group(1)) < _LARGEST:
        raise InputError(f"a size is written like 90MB or 1.5GB, not {text!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def fit_recipe(source: Source, base: Recipe, budget: Budget, progress: Progress) -> tuple[Recipe, str]:
    """The recipe, and what a reader of its file should know: sizes and expected losses.

    base  gives the method and the format of embedding and head

    Raises InputError if not even the smallest formats fit.
    """
    from ..export.sensitivity import group_sensitivities

    head = source.config.head_name
    groups = [names for names in dict.fromkeys(take_inventory(source.config).linears) if names[0] != head]
    options = {names: _fitting(source.checkpoint, names) for names in groups}
    tokens = source.calibration[:: max(1, len(source.calibration) // _SEQUENCES), :_TOKENS]
    with progress("Measuring sensitivities", len(groups)) as step:
        coarsest = {names: formats[0] for names, formats in options.items()}
        weights = CheckpointWeights(source.checkpoint)
        losses = group_sensitivities(weights, source.config, coarsest, tokens, step, os.cpu_count() or 1)
    with progress("Comparing formats", len(groups)) as step:
        choices = {}
        for names in groups:
            choices[" ".join(names)] = _choices(source.checkpoint, names, options[names], losses[names])
            step()
    return _recipe(source, base, budget, choices)


def _fitting(checkpoint: Checkpoint, names: Names) -> list[Format]:
    columns = checkpoint.shape(names[0])[1]
    return [form for form in _FORMATS if columns % (form.group or columns) == 0]


def _choices(checkpoint: Checkpoint, names: Names, formats: Sequence[Format], measured: float) -> list[Choice]:
    """Sizes, and losses: measured for the first format, for the others in proportion to their squared errors."""
    samples = [_sample(checkpoint.read(name)) for name in names]
    errors = [sum(_squared_error(sample, form) for sample in samples) for form in formats]
    count = sum(math.prod(checkpoint.shape(name)) for name in names)
    rows = sum(checkpoint.shape(name)[0] for name in names)
    return [
        Choice(form, weight_bytes(form, count, rows), max(0.0, measured) * error / max(errors[0], 1e-30))
        for form, error in zip(formats, errors, strict=True)
    ]


def _sample(weight: np.ndarray) -> np.ndarray:
    rows: np.ndarray = weight[np.linspace(0, len(weight) - 1, min(_ROWS, len(weight))).astype(int)]
    return rows


def _squared_error(weight: np.ndarray, form: Format) -> float:
    assert form.bits is not None
    return relative_error(weight, round_to_nearest(weight, form.bits, form.group)) ** 2


def weight_bytes(form: Format, count: int, rows: int) -> int:
    """Bytes of a weight with so many values and rows: codes, and two bytes for each scale."""
    if form.bits is None:
        return count * (4 if form.kind == "fp32" else 2)
    return count * form.bits // 8 + 2 * (rows if form.group is None else count // form.group)


def _recipe(
    source: Source, base: Recipe, budget: Budget, choices: Mapping[str, Sequence[Choice]]
) -> tuple[Recipe, str]:
    shapes = {name: source.checkpoint.shape(name) for name in source.checkpoint.names()}
    linears = {name for key in choices for name in key.split()}
    count = sum(math.prod(shapes[name]) for name in linears)
    rest = sum(
        weight_bytes(base.format_of(name), math.prod(shape), shape[0]) if len(shape) == 2 else 2 * math.prod(shape)
        for name, shape in shapes.items()
        if name not in linears
    )
    allowed = int(budget.bits * count / 8) if budget.bits is not None else (budget.size_bytes or 0) - rest
    found = allocate(choices, allowed)
    if found is None:
        least = sum(min(choice.size_bytes for choice in options) for options in choices.values())
        raise InputError(
            f"{budget} is too little: the smallest formats take {8 * least / count:.3g} bits for each weight of the "
            f"linears, and {(least + rest) / 1e6:.1f} MB in all"
        )
    used = sum(choice.size_bytes for choice in found.values())
    note = (
        f"{8 * used / count:.3f} bits for each weight of the linears, {(used + rest) / 1e6:.1f} MB with embedding and "
        f"head;\nsum of the losses expected if rounded to nearest: KL {sum(c.kl for c in found.values()):.3g}"
    )
    formats = {name: choice.format for key, choice in found.items() for name in key.split()}
    common = Counter(formats.values()).most_common(1)[0][0]
    overrides = {name: form for name, form in formats.items() if form != common}
    return replace(base, name=f"{base.name}-{budget}", linear=common, overrides=overrides), note
