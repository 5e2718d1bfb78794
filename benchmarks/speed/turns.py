"""Runtimes in processes of their own that take turns, so that a slow moment of the machine is everybody's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

_PAUSE_SECONDS = 0.3  # threads of the last one spin on for a while
HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A runtime with a file. ``kind`` and ``path`` are those of worker.py; ``size_bytes`` counts its files."""

    name: str
    kind: str
    path: Path
    size_bytes: int


@dataclass
class Timed:
    """Seconds by (phase, length), one for each round."""

    system: System
    load_seconds: float
    peak_bytes: int = 0
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def rate(self, phase: str, length: int, new: int) -> float:
        """Median tokens per second of "prefill" or "decode"."""
        return (length if phase == "prefill" else new) / median(self.seconds[phase, length])


class Worker:
    """A process that answers lines."""

    def __init__(self, system: System, threads: int, context: int) -> None:
        command = [sys.executable, str(HERE / "worker.py"), system.kind, str(system.path), str(threads), str(context)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.system = system

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line; to none when it has loaded."""
        assert self._process.stdin is not None
        if line:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON; other lines are a runtime's own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.system.name} ended with status {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def take_turns(
    systems: Sequence[System], threads: int, context: int, lengths: Sequence[int], new: int, rounds: int
) -> list[Timed]:
    """Each system at each length, again and again; the first round is not counted."""
    workers = [Worker(system, threads, context) for system in systems]
    timed = [Timed(worker.system, worker.answer()["load_seconds"]) for worker in workers]
    pairs = list(zip(workers, timed, strict=True))
    for number in range(rounds + 1):
        for length in lengths:
            pairs = pairs[1:] + pairs[:1]  # nobody always follows the same one
            for worker, each in pairs:
                time.sleep(_PAUSE_SECONDS)
                answer = worker.ask(f"{length} {new}")
                for phase in ("prefill", "decode") if number else ():
                    each.seconds.setdefault((phase, length), []).append(answer[f"{phase}_seconds"])
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    for worker, each in zip(workers, timed, strict=True):
        each.peak_bytes = worker.ask("memory")["peak_bytes"]
        worker.close()
    return timed
