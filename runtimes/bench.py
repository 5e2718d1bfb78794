"""`pocketlm bench`: how fast an artifact is on this machine. On another machine it will be something else."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from ..errors import InputError
from ..export.bundle import Manifest, read_manifest
from ..export.caches import asked_for
from ..export.config import parse_config
from ..quantize.recipe import Format, Recipe
from .bandwidth import Bandwidth, best_of, measure_bandwidth
from .memory_limit import status_bytes
from .plan_speed import Work, measure_work
from .plan_storage import describe_storage
from .progress import Progress, silent
from .session import Session
from .targets import get_target
from .verify import check_targets


@dataclass(frozen=True)
class Run:
    """One run: prefill of the prompt, then decoding, tokens per second."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_seconds: float


def bench(
    bundle: Path,
    targets: Sequence[str] = (),
    prompt_tokens: int = 256,
    new_tokens: int = 64,
    runs: int = 5,
    threads: int = 2,
    progress: Progress = silent,
    lengths: Sequence[int] = (),
) -> dict[str, Any]:
    """Time each target on random tokens, behind prompts of each of ``lengths`` (or of ``prompt_tokens``).

    Gives, for each target: load times, medians, spreads and every run for each length, bytes per second that decoding
    read and their share of this machine's memory bandwidth, peak memory, and what ran it. A length that does not fit
    the context is left out; what stands beside ``lengths`` are the figures of the first. Lengths take turns, so that a
    slow moment of the machine is everybody's.

    Raises InputError if none fits.
    """
    manifest = read_manifest(bundle)
    names = check_targets(bundle, manifest, targets)
    wanted = list(dict.fromkeys(lengths or (prompt_tokens,)))
    fitting = [length for length in wanted if length + new_tokens <= manifest.context]
    if not fitting:
        raise InputError(
            f"{min(wanted)} + {new_tokens} tokens do not fit the context of {manifest.context}; ask for fewer"
        )
    with progress("Measuring the memory's bandwidth"):
        before = measure_bandwidth(threads)
    timed = {}
    for name in names:
        with progress(f"Timing {name}", runs + 1) as step:
            timed[name] = _time_target(bundle, name, fitting, new_tokens, runs, threads, step)
    with progress("Measuring the memory's bandwidth again"):
        bandwidth = best_of(before, measure_bandwidth(threads))
    results = {name: _summary(manifest, name, measured, new_tokens, bandwidth) for name, measured in timed.items()}
    return {
        "prompt_tokens": fitting[0],
        "new_tokens": new_tokens,
        "threads": threads,
        "lengths": fitting,
        "left_out": [length for length in wanted if length not in fitting],
        "memory_bandwidth": asdict(bandwidth) | {"best": bandwidth.best, "how": bandwidth.how},
        "targets": results,
    }


_FIELDS = tuple(Run.__dataclass_fields__)


def _summary(
    manifest: Manifest, name: str, measured: Mapping[str, Any], new_tokens: int, bandwidth: Bandwidth
) -> dict[str, Any]:
    """One target's figures: those of each length, and those of the first beside them."""
    work = _work(manifest, name)
    lengths = {
        str(length): _of_length(length, new_tokens, series, work, bandwidth)
        for length, series in measured["series"].items()
    }
    first = next(iter(lengths.values()))
    others = {key: value for key, value in measured.items() if key != "series"}
    cache = {"cache": manifest.caches.get(name), "cache_bytes_per_token": work.cache_bytes}
    return others | cache | {"lengths": lengths} | {key: first[key] for key in (*_FIELDS, "runs")}


def _time_target(
    bundle: Path, name: str, lengths: Sequence[int], new_tokens: int, runs: int, threads: int, step: Any
) -> dict[str, Any]:
    _reset_peak()
    target, before = get_target(name), _resident_bytes()
    started = time.perf_counter()
    session = target.open_session(bundle / name, threads)
    first_load = time.perf_counter() - started
    prompts = {length: _random_tokens(session.vocab_size, length) for length in lengths}
    for tokens in prompts.values():
        _one_run(session, tokens, new_tokens)  # the first run touches every page of the weights
    step()
    series: dict[int, list[Run]] = {length: [] for length in lengths}
    for _ in range(runs):
        for length, tokens in prompts.items():
            series[length].append(_one_run(session, tokens, new_tokens))
        step()
    peak = _peak_bytes()
    del session
    started = time.perf_counter()
    target.open_session(bundle / name, threads)
    return {
        "first_load_seconds": first_load,
        "later_load_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak,
        "artifact_memory_bytes": max(0, peak - before),
        "series": series,
        "evaluated_by": target.evaluated_by(),
    }


def _random_tokens(vocab_size: int, count: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(0).integers(0, vocab_size, count).tolist()
    return tokens


def _one_run(session: Session, tokens: Sequence[int], new_tokens: int) -> Run:
    session.reset()
    started = time.perf_counter()
    token = int(session.run(tokens).argmax())
    first = time.perf_counter()
    for _ in range(new_tokens):
        token = int(session.run([token]).argmax())
    ended = time.perf_counter()
    return Run(len(tokens) / (first - started), new_tokens / (ended - first), first - started)


def _of_length(length: int, new_tokens: int, series: Sequence[Run], work: Work, bandwidth: Bandwidth) -> dict[str, Any]:
    """Medians, spreads (distance between the quartiles), and what the median of decoding means in bytes."""
    values = {key: [getattr(run, key) for run in series] for key in _FIELDS}
    found = {key: median(each) for key, each in values.items()}
    read = work.weight_bytes + (length + new_tokens / 2) * work.cache_bytes
    achieved = read * found["decode_tokens_per_second"]
    return {
        **found,
        "spread": {key: _spread(each) for key, each in values.items()},
        "decode_bytes_per_token": read,
        "decode_bytes_per_second": achieved,
        "share_of_bandwidth": achieved / bandwidth.best,
        "runs": [asdict(run) for run in series],
    }


def _spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def _work(manifest: Manifest, target: str) -> Work:
    """Bytes that a token costs, from what the manifest says of the weights."""
    config = parse_config(manifest.config, manifest.context)
    biases = (name.removesuffix("bias") + "weight" for name in manifest.weights if name.endswith("_proj.bias"))
    cache = asked_for(manifest.cache(target))
    stored = describe_storage(config, _recipe(manifest.recipe), manifest.context, frozenset(biases), cache)
    return measure_work(stored, target)


def _recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe as a manifest has it."""
    linear, embedding = (Format(**content[key]) for key in ("linear", "embedding"))
    overrides = {pattern: Format(**form) for pattern, form in content["overrides"].items()}
    return Recipe(content["name"], linear, embedding, overrides, method=content["method"])


def _reset_peak() -> None:
    """Let the peak of this process begin anew, where the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    """Since the last reset; since the process began where there is none."""
    here = status_bytes(os.getpid(), "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return here or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident_bytes() -> int:
    return status_bytes(os.getpid(), "VmRSS")
