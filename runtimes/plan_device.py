"""One artifact on one device: whether it fits, how fast it may be, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ..export.caches import has_cache
from ..quantize.recipe import RECIPES, Recipe
from .devices import Device
from .plan_memory import phone_memory
from .plan_speed import FAST, SLOW, TYPICAL, Efficiency, Work, decode_seconds, measure_work, on_gpu, prefill_seconds
from .plan_storage import Stored, describe_storage

PROMPT_TOKENS, NEW_TOKENS = 256, 64  # as `pocketlm bench` has them
_TIGHT = 0.8  # of what an app may use: the rest is for the app itself, and for what the estimate misses
_SMALLER = ("int8-rtn", "int4-rtn", "int4-g64-rtn", "int4-g128-rtn")
_CONTEXTS = tuple(2**power for power in range(17, 8, -1))  # 512 tokens are the least that is worth a conversation
# Watts while a model generates. Phones: 5.7 to 10, iPhone 17 Pro, six runtimes (john-rocky/Yardstick, README.md, joules
# for a token times tokens/s). Laptops: 14.6 to 24.7 of the package, M4 Max (the same), 25 above idle, M4
# (geerlingguy/ai-benchmarks, issue 2). Chips with small cores only take less.
_WATTS = {"phone": (5.0, 10.0), "laptop": (14.0, 25.0)}

Option = tuple[str, int]  # what to do, and the bytes that it comes to


@dataclass(frozen=True)
class Estimate:
    """A range, and what is most likely."""

    low: float
    typical: float
    high: float


@dataclass(frozen=True)
class DevicePlan:
    """A target's artifact on a device.

    limit_bytes       what an app may use
    needed_bytes      what the artifact takes
    verdict           fits, tight, or does not fit
    reason            of the verdict
    remedies          what would make it fit; empty if it does, or if only a smaller model would
    first_token_seconds, tokens_per_second, joules_per_token  estimates, behind a prompt of PROMPT_TOKENS
    """

    device: str
    name: str
    target: str
    limit_bytes: int
    needed_bytes: int
    verdict: str
    reason: str
    remedies: tuple[str, ...]
    first_token_seconds: Estimate
    tokens_per_second: Estimate
    joules_per_token: Estimate

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Artifact:
    """A target's artifact, with what is asked of it for each device worked out once."""

    target: str
    stored: Stored

    @cached_property
    def needed(self) -> int:
        """Bytes on a phone."""
        return phone_memory(self.target, self.stored).total

    @cached_property
    def work(self) -> Work:
        """What a token costs."""
        return measure_work(self.stored, self.target)

    @cached_property
    def cheaper(self) -> tuple[tuple[Option, ...], ...]:
        """Fewer bits; a cache in int8; a shorter context; all of them. What costs least to give up comes first."""
        fewer = [(name, other) for name in _SMALLER if (other := _with_recipe(self.stored, RECIPES[name])) is not None]
        recipes = [(f"--recipe {name.removesuffix('-rtn')}", other) for name, other in fewer]
        caches = self._smaller_cache(self.stored)
        both = [
            (f"{text} {more}", less)
            for text, other in recipes
            for more, less in (*self._smaller_cache(other), *_shorter(other))
        ]
        both += [
            (f"{text} {more} {last}", least)
            for text, other in recipes
            for more, less in self._smaller_cache(other)
            for last, least in _shorter(less)
        ]
        both += [(f"{text} {more}", less) for text, other in caches for more, less in _shorter(other)]
        both.sort(key=lambda option: -option[1].context)
        return tuple(
            tuple((text, phone_memory(self.target, other).total) for text, other in options)
            for options in (recipes, caches, _shorter(self.stored), both)
        )

    def _smaller_cache(self, stored: Stored) -> list[tuple[str, Stored]]:
        """The model with an int8 cache, where the target has one and the model not yet."""
        able = stored.cache == "float" and has_cache(self.target, "int8")
        return [("--cache int8", replace(stored, cache="int8"))] if able else []


def plan_device(device: Device, artifact: Artifact) -> DevicePlan:
    """The plan for a device that has a runtime for the target."""
    needed, limit, context = artifact.needed, device.app_bytes, artifact.stored.context
    verdict = "fits" if needed <= _TIGHT * limit else "tight" if needed <= limit else "does not fit"
    prompt = min(PROMPT_TOKENS, max(1, context - 1))
    behind = min(prompt + NEW_TOKENS // 2, context - 1)
    first = _estimate(artifact.target, lambda at: prefill_seconds(artifact.work, device.chip, prompt, at))
    each = _estimate(artifact.target, lambda at: decode_seconds(artifact.work, device.chip, behind, at))
    low, high = _WATTS[device.kind]
    return DevicePlan(
        device=device.key,
        name=device.name,
        target=artifact.target,
        limit_bytes=limit,
        needed_bytes=needed,
        verdict=verdict,
        reason=f"it takes about {_mb(needed)} of the {_mb(limit)} that an app may use",
        remedies=() if verdict == "fits" else remedies(device, artifact),
        first_token_seconds=first,
        tokens_per_second=Estimate(1 / each.high, 1 / each.typical, 1 / each.low),
        joules_per_token=Estimate(low * each.typical, (low * high) ** 0.5 * each.typical, high * each.typical),
    )


def _estimate(target: str, seconds: Callable[[Efficiency], float]) -> Estimate:
    low, typical, high = (seconds(on_gpu(at) if target == "coreml" else at) for at in (FAST, TYPICAL, SLOW))
    return Estimate(low, typical, high)


def remedies(device: Device, artifact: Artifact) -> tuple[str, ...]:
    """What brings the artifact under ``_TIGHT`` of the limit: fewer bits, a smaller cache, a shorter context, or else
    several of them; and others. If nothing does, what brings it under the limit itself, called tight.

    Empty if nothing does that, either.
    """
    found = _cheaper_within(artifact, _TIGHT * device.app_bytes)
    if not found and artifact.needed > device.app_bytes:
        found = [f"{option}, tight" for option in _cheaper_within(artifact, device.app_bytes)]
    entitled = (device.app_entitled_mb or 0) << 20
    if artifact.needed <= _TIGHT * entitled:
        found.append(f"the entitlement increased-memory-limit: an app may use {_mb(entitled)}")
    return tuple(found)


def _cheaper_within(artifact: Artifact, allowed: float) -> list[str]:
    *single, several = (_first_that_fits(options, allowed) for options in artifact.cheaper)
    return [option for options in single for option in options] or several


def _first_that_fits(options: Iterable[Option], allowed: float) -> list[str]:
    """The first option, with its memory; none if none fits."""
    return next(([f"{text}: {_mb(needed)}"] for text, needed in options if needed <= allowed), [])


def _shorter(stored: Stored) -> list[tuple[str, Stored]]:
    """The model with shorter contexts, the longest first."""
    contexts = (context for context in _CONTEXTS if context < stored.context)
    return [(f"--context {context}", replace(stored, context=context)) for context in contexts]


def _with_recipe(stored: Stored, recipe: Recipe) -> Stored | None:
    """The model under another recipe; None where that is no smaller, or its groups do not divide the columns."""
    other = describe_storage(stored.config, recipe, stored.context, stored.biases, stored.cache)
    fits = all(other.shapes[name][1] % (form.group or 1) == 0 for name, form in other.formats.items())
    smaller = phone_memory("executorch", other).weights < phone_memory("executorch", stored).weights
    return other if fits and smaller else None


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e10 else f"{size / 1e9:.1f} GB"
