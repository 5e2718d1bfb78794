"""Judging one finished artifact: the errors of the certificate, each measured between two neighbours.

source --quantization--> canonical --cache--> cached --activation--> emulated --runtime--> shipped
                         canonical --conversion--> exact

Where the cache keeps floating point, canonical and cached are one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig
from ..quantize.cache import CacheFormat
from ..quantize.store import Weights
from .certificate import Error, Exactness, TargetCertificate
from .identity import check_identity
from .metrics import Deviation, deviation, perplexity_ratio
from .session import ArtifactError, Session
from .target import Target

if TYPE_CHECKING:
    from ..export.to_torch import CacheArithmetic

Logits = NDArray[np.float32]

NOISE = 1e-6  # relative, on the embedding: about one rounding of float32
NOISE_SEEDS = (1, 2, 3)
MORE_NOISE_SEEDS = (4, 5, 6, 7, 8, 9)  # where a runtime is above the floor, which must then be known better


@dataclass(frozen=True)
class Evaluation:
    """The tokens that artifacts are judged on.

    tokens    int64 (sequences, tokens)
    prefill   tokens that a session takes at once, as the prompt; the rest one at a time
    prose     index of the first sequence that is prose of others, not the model's own words: perplexity is over these
    """

    tokens: NDArray[np.int64]
    prefill: int
    prose: int

    @property
    def first(self) -> int:
        """The first position whose logits a session gives: that of the last prompt token."""
        return self.prefill - 1

    @property
    def positions(self) -> int:
        """Positions over which the errors are means."""
        return int(self.tokens.shape[0] * (self.tokens.shape[1] - self.first))


class CheckpointWeights:
    """A checkpoint as weights in fp32: what the model was before it was quantised."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(checkpoint.names())

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._checkpoint.read(name)


def shipped_logits(session: Session, evaluation: Evaluation) -> Logits:
    """The artifact as shipped, fed as an app feeds it: the prompt at once, then token by token (teacher-forced)."""
    count, length = evaluation.tokens.shape
    logits = np.empty((count, length - evaluation.first, session.vocab_size), np.float32)
    for row, sequence in zip(logits, evaluation.tokens.tolist(), strict=True):
        session.reset()
        row[0] = session.run(sequence[: evaluation.prefill])
        for index, token in enumerate(sequence[evaluation.prefill :], 1):
            row[index] = session.run([token])
    return logits


@dataclass(frozen=True)
class Judgement:
    """A target's certificate; the logits that a correct runtime of its kind gives, and those that the artifact gave.

    The logits are from the evaluation's first position on. They and ``context``, the tokens that the artifact's cache
    holds, are None if the file does not hold the canonical weights.
    """

    certificate: TargetCertificate
    expected: Logits | None = None
    shipped: Logits | None = None
    context: int | None = None


@dataclass(frozen=True)
class _Errors:
    """What was measured, and the standard deviation of the canonical logits."""

    quantization: Error | None
    conversion: Error | None
    activation: Error
    runtime: Error
    total: Error | None
    cache: Error | None
    logit_spread: float


JUDGE_STEPS = 5 + len(NOISE_SEEDS)


def judge(
    target: Target,
    folder: Path,
    config: ModelConfig,
    fingerprints: Mapping[str, Mapping[str, str]],
    evaluation: Evaluation,
    source: Logits | None,
    limits: Mapping[str, float],
    step: Callable[[], None],
    cache: CacheFormat | None = None,
) -> Judgement:
    """Read ``folder`` back, run it, and tell its errors apart.

    cache   how the artifact keeps keys and values; None is the target's floating point
    source  the source model's logits from the evaluation's first position on; None if the source is not at hand
    limits  as in ``thresholds``
    step    called ``JUDGE_STEPS`` times, fewer if the file does not hold the canonical weights
    """
    started = time.perf_counter()
    found = target.read_back(folder, config)
    identity = check_identity(found, fingerprints, config, cache)
    step()
    failures = identity.differences
    errors = exactness = expected = shipped = context = None
    if not failures:
        exactness, inexact = _exactness(target, config, found.weights, limits, cache)
        try:
            measured = _measure(target, folder, config, found.weights, evaluation, source, step, cache)
        except ArtifactError as error:
            failures = (*inexact, str(error))
        else:
            errors, expected, shipped, context = measured
            failures = inexact + find_failures(errors, limits)
        if any(line.startswith("conversion") for line in failures) and target.locate is not None:
            failures += (target.locate(folder, config, found.weights, evaluation.tokens),)
    certificate = TargetCertificate(
        weights_identical=not identity.differences,
        tensors_checked=identity.tensors_checked,
        constants_checked=identity.constants_checked,
        positions=0 if errors is None else evaluation.positions,
        quantization=None if errors is None else errors.quantization,
        conversion=None if errors is None else errors.conversion,
        activation=None if errors is None else errors.activation,
        runtime=None if errors is None else errors.runtime,
        total=None if errors is None else errors.total,
        cache=None if errors is None else errors.cache,
        failures=failures,
        evaluated_by=target.evaluated_by(),
        notes=target.notes + (() if target.remarks is None else target.remarks(folder)),
        lint=() if target.lint is None else target.lint(folder),
        size_bytes=_size(folder),
        seconds=round(time.perf_counter() - started, 2),
        exactness=exactness,
    )
    return Judgement(certificate, expected, shipped, context)


NOT_RUN = "nothing was run (--certify identity); measure the rest with: pocketlm verify BUNDLE --reference MODEL"


def judge_identity(
    target: Target,
    folder: Path,
    config: ModelConfig,
    fingerprints: Mapping[str, Mapping[str, str]],
    cache: CacheFormat | None = None,
) -> Judgement:
    """Read ``folder`` back and compare its weights and constants, but run nothing."""
    started = time.perf_counter()
    identity = check_identity(target.read_back(folder, config), fingerprints, config, cache)
    quantised = ("cache",) if cache is not None and not cache.is_float else ()
    certificate = TargetCertificate(
        weights_identical=not identity.differences,
        tensors_checked=identity.tensors_checked,
        constants_checked=identity.constants_checked,
        positions=0,
        quantization=None,
        conversion=None,
        activation=None,
        runtime=None,
        total=None,
        failures=identity.differences,
        evaluated_by="reading it back",
        notes=(NOT_RUN,),
        size_bytes=_size(folder),
        seconds=round(time.perf_counter() - started, 2),
        left_out=("quantization", *quantised, "conversion", "activation", "runtime", "total"),
    )
    return Judgement(certificate)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _exactness(
    target: Target, config: ModelConfig, weights: Weights, limits: Mapping[str, float], cache: CacheFormat | None
) -> tuple[Exactness | None, tuple[str, ...]]:
    """What single operations deviate, and a line for each that deviates too much."""
    if target.exactness is None:
        return None, ()
    found, limit = target.exactness(config, weights, cache), limits["exactness.relative"]
    worst = max(found, key=lambda name: found[name])
    lines = tuple(
        f"exactness: {name} differs from its emulation by {value:.2g} of its largest value, more than {limit:.2g}"
        for name, value in found.items()
        if not value <= limit
    )
    return Exactness(len(found), worst, found[worst]), lines


def _measure(
    target: Target,
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    evaluation: Evaluation,
    source: Logits | None,
    step: Callable[[], None],
    cache: CacheFormat | None,
) -> tuple[_Errors, Logits, Logits, int]:
    """Each array of logits is let go of as soon as its last comparison is made."""
    from ..export.to_torch import reference_logits, relative_noise

    tokens, first = evaluation.tokens, evaluation.first
    canonical = reference_logits(weights, config, tokens, first=first)
    step()
    quantization = None if source is None else _against_source(source, canonical, evaluation)
    conversion = None
    if target.exact_logits is not None:
        conversion = _error(deviation(canonical, target.exact_logits(folder, config, tokens)[:, first:]))
    step()
    spread, kept = float(canonical.std()), cache_arithmetic(target, cache, weights)
    cached = canonical if kept is None else reference_logits(weights, config, tokens, first=first, cache=kept)
    cache_error = None if kept is None else _error(deviation(canonical, cached))
    del canonical
    emulate = target.emulate or reference_logits
    emulated = cached if target.emulate is None else emulate(weights, config, tokens, first=first, cache=kept)
    activation = _error(deviation(cached, emulated))
    del cached
    step()

    def floor(seed: int) -> float:
        noise = relative_noise(NOISE, seed)
        noisy = emulate(weights, config, tokens, embedding_noise=noise, first=first, cache=kept)
        return deviation(emulated, noisy).kl

    floors = []
    for seed in NOISE_SEEDS:
        floors.append(floor(seed))
        step()
    session = target.open_session(folder, 2)
    shipped = shipped_logits(session, evaluation)
    runtime = _error(deviation(emulated, shipped))
    if runtime.kl > median(floors):
        floors += map(floor, MORE_NOISE_SEEDS)
    runtime = replace(runtime, noise_floor_kl=median(floors))
    total = None if source is None else _against_source(source, shipped, evaluation)
    step()
    errors = _Errors(quantization, conversion, activation, runtime, total, cache_error, spread)
    return errors, emulated, shipped, session.context


def cache_arithmetic(target: Target, cache: CacheFormat | None, weights: Weights) -> CacheArithmetic | None:
    """What a cache does to keys and values, in the reference; None where it keeps floating point."""
    return None if cache is None or cache.is_float else target.cache_arithmetic[cache.name](weights)


def _error(found: Deviation) -> Error:
    return Error(kl=found.kl, top1=found.top1, max_abs_logit=found.max_abs_logit)


def _against_source(source: Logits, actual: Logits, evaluation: Evaluation) -> Error:
    prose = slice(evaluation.prose, None)
    ratio = perplexity_ratio(source[prose], actual[prose], evaluation.tokens[prose, evaluation.first :])
    return replace(_error(deviation(source, actual)), perplexity_ratio=ratio)


def runtime_limit(runtime: Error, limits: Mapping[str, float]) -> float:
    """The largest KL that is still within the noise floor, nats."""
    return max(limits["runtime.kl_rounding"], limits["runtime.noise_floors"] * (runtime.noise_floor_kl or 0.0))


def find_failures(errors: _Errors, limits: Mapping[str, float]) -> tuple[str, ...]:
    """One line for each limit that is exceeded; a value that is no finite number exceeds every limit."""
    checks = [("runtime: KL", errors.runtime.kl, runtime_limit(errors.runtime, limits))]
    if errors.conversion is not None:
        largest = (errors.conversion.max_abs_logit or 0.0) / max(errors.logit_spread, 1e-9)
        checks += [
            ("conversion: KL", errors.conversion.kl, limits["conversion.kl"]),
            (
                "conversion: largest logit difference (in standard deviations)",
                largest,
                limits["conversion.relative_logit"],
            ),
        ]
    for name in ("quantization", "cache", "activation", "total"):
        error: Error | None = getattr(errors, name)
        if error is not None:
            checks.append((f"{name}: KL", error.kl, limits[f"{name}.kl"]))
    return tuple(
        f"{what} {value:.3g} exceeds {limit:.3g}"
        if np.isfinite(value)
        else f"{what} is no finite number: something overflows"
        for what, value, limit in checks
        if not (value <= limit and np.isfinite(value))
    )
