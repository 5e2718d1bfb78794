"""`pocketlm bench`: how fast an artifact is on this machine. On another machine it will be something else."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..export.bundle import read_manifest
from .progress import Progress, silent
from .session import Session
from .targets import get_target
from .verify import check_targets

if TYPE_CHECKING:
    from rich.table import Table


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
) -> dict[str, Any]:
    """Time each target on random tokens: name -> load times, medians, every run, peak memory, and what ran it.

    Raises InputError if prompt and new tokens do not fit the context.
    """
    manifest = read_manifest(bundle)
    names = check_targets(bundle, manifest, targets)
    if prompt_tokens + new_tokens > manifest.context:
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens do not fit the context of {manifest.context}; ask for fewer"
        )
    results: dict[str, Any] = {}
    for name in names:
        with progress(f"Timing {name}", runs + 1) as step:
            started = time.perf_counter()
            session = get_target(name).open_session(bundle / name, threads)
            first_load = time.perf_counter() - started
            tokens = _random_tokens(session.vocab_size, prompt_tokens)
            _one_run(session, tokens, new_tokens)  # the first run touches every page of the weights
            step()
            series = []
            for _ in range(runs):
                series.append(_one_run(session, tokens, new_tokens))
                step()
            del session
            started = time.perf_counter()
            get_target(name).open_session(bundle / name, threads)
            later_load = time.perf_counter() - started
        results[name] = _summary(series, first_load, later_load) | {"evaluated_by": get_target(name).evaluated_by()}
    return {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "threads": threads, "targets": results}


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


def _summary(series: Sequence[Run], first_load: float, later_load: float) -> dict[str, Any]:
    fields = {key: median(getattr(run, key) for run in series) for key in asdict(series[0])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "first_load_seconds": first_load,
        "later_load_seconds": later_load,
        **fields,
        "peak_memory_bytes": peak,
        "runs": [asdict(run) for run in series],
    }


def bench_table(results: Mapping[str, Any]) -> Table:
    """Medians, one column for each target."""
    from rich import box
    from rich.table import Table

    title = f"{results['prompt_tokens']} prompt tokens, {results['new_tokens']} new ones, {results['threads']} threads"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    targets: Mapping[str, Mapping[str, Any]] = results["targets"]
    for name in targets:
        table.add_column(name, justify="right")
    rows = (
        ("prefill, tokens/s", "prefill_tokens_per_second", 1, 0),
        ("decode, tokens/s", "decode_tokens_per_second", 1, 0),
        ("first token after, ms", "time_to_first_token_seconds", 1e3, 0),
        ("first load, s", "first_load_seconds", 1, 2),
        ("later load, s", "later_load_seconds", 1, 2),
        ("peak memory of the process, MB", "peak_memory_bytes", 1e-6, 0),
    )
    for label, key, factor, digits in rows:
        table.add_row(label, *(f"{target[key] * factor:.{digits}f}" for target in targets.values()))
    return table
