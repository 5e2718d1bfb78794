"""The limits of the certificate: one table, each with its reason. A recipe may change any by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import InputError


@dataclass(frozen=True)
class Threshold:
    """A limit: what is measured must not exceed it."""

    limit: float
    reason: str


_INFINITE = float("inf")

THRESHOLDS: Mapping[str, Threshold] = {
    "quantization.kl": Threshold(
        _INFINITE, "how much a model may lose is its user's choice; set it in the recipe to gate a release"
    ),
    "total.kl": Threshold(_INFINITE, "the same for what the user feels: the artifact as shipped against the source"),
    "cache.kl": Threshold(
        _INFINITE, "what keys and values in int8 cost was asked for with --cache; set it to gate a release"
    ),
    "conversion.kl": Threshold(
        1e-6, "the same weights and fp32 arithmetic: float rounding gives 1e-10, the mildest lowering bug seen 1e-4"
    ),
    "conversion.relative_logit": Threshold(
        5e-4, "largest logit difference over the logits' standard deviation: float rounding over 30 layers gives 6e-5"
    ),
    "activation.kl": Threshold(_INFINITE, "the scheme's own cost, chosen with the target; reported"),
    "exactness.relative": Threshold(
        1e-4, "one operation or layer, fed the same input: float rounding gives 1e-6, another rounding rule 1e-3"
    ),
    "runtime.noise_floors": Threshold(
        2.0, "two correct runtimes differ by about one noise floor; the shipped kernels may not differ by more than two"
    ),
    "runtime.kl_rounding": Threshold(
        1e-6, "where activations stay in floating point the floor is about 1e-11, and rounding alone exceeds it"
    ),
}


def limits(changes: Mapping[str, float], of_target: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
    """The limits with a target's and then a recipe's changes; raises InputError for a name that is not in the table."""
    unknown = sorted(set(changes) - set(THRESHOLDS))
    if unknown:
        raise InputError(f"recipe: no threshold {unknown[0]!r}; there are {', '.join(THRESHOLDS)}")
    return {name: threshold.limit for name, threshold in THRESHOLDS.items()} | dict(of_target) | dict(changes)
