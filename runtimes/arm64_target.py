"""Targets whose artifacts run on arm64: the same record with another way to open, to evaluate and to emulate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..export.executorch_file import MODEL_FILE
from .arm64_arithmetic import arithmetic, emulation_on
from .arm64_kernels import count_instructions
from .arm64_lane import Lane, worker_command
from .arm64_lock import read_lock
from .arm64_session import Memory, PipeSession
from .certificate import Hardware
from .session import AllLogits, Session
from .target import Target
from .targets import get_target

TARGETS = ("onnx", "executorch")
FALLBACK = (
    "this core has no int8 dot products: ONNX Runtime silently computes with fp32 activations here, "
    "accuracy level 4 or not, which is slower and needs more memory"
)
EMULATED = "emulated: numerics and kernels are this core's, times mean nothing"


@dataclass(frozen=True)
class Arm64Runs:
    """The processes that one judgement starts.

    lane         None where this machine is arm64 itself
    limit_bytes  of memory that the artifact as shipped may take; its evaluation with fp32 activations is not limited,
                 because no phone does that
    scratch      a folder for the processes' files
    sessions     those over the artifact as shipped
    """

    lane: Lane | None
    core: str
    limit_bytes: int | None
    scratch: Path
    sessions: list[PipeSession] = field(default_factory=list)
    others: list[PipeSession] = field(default_factory=list)

    def open_shipped(self, kind: str, folder: Path, threads: int) -> Session:
        """The artifact as shipped, held to the limit; raises ArtifactError if it cannot load."""
        command, environment = self._command(kind, folder, 1, None, self._log)
        self.sessions.append(PipeSession(command, environment, self.limit_bytes))
        return self.sessions[-1]

    def open_other(self, kind: str, folder: Path, graph: bytes | None = None) -> AllLogits:
        """Another artifact, or ``graph`` whose tensors lie in ``folder``."""
        file = None
        if graph is not None:
            file = self.scratch / "graph.onnx"
            file.write_bytes(graph)
        self.others.append(PipeSession(*self._command(kind, folder, 1, file, None)))
        return self.others[-1]

    @property
    def _log(self) -> Path:
        return self.scratch / "instructions.log"

    def _command(
        self, kind: str, folder: Path, threads: int, graph: Path | None, log: Path | None
    ) -> tuple[list[str], dict[str, str] | None]:
        path = folder.resolve()
        if kind == "executorch" and self.lane is not None:
            path = path / MODEL_FILE
        arguments = [str(path), str(threads), *([] if graph is None else [str(graph)])]
        return worker_command(self.lane, self.core, kind, arguments, Path(mkdtemp(dir=self.scratch)), log)

    def hardware(self, device: str | None) -> Hardware:
        """What the artifact ran on and took; ``device`` is the phone that the limit is from."""
        counted = count_instructions(self._log) if self._log.exists() else None
        memory = self.sessions[-1].memory if self.sessions else Memory(0)
        return Hardware(
            core=self.core,
            instructions=counted,
            device=device,
            memory_limit_bytes=memory.limit_bytes,
            memory_limited_by=memory.limited_by,
            peak_memory_bytes=memory.peak_bytes,
        )


@contextmanager
def arm64_runs(lane: Lane | None, core: str, limit_bytes: int | None) -> Iterator[Arm64Runs]:
    """Runs on this core; their processes end with the context."""
    with TemporaryDirectory(prefix="pocketlm-arm64-") as scratch:
        runs = Arm64Runs(lane, core, limit_bytes, Path(scratch))
        try:
            yield runs
        finally:
            for session in runs.sessions + runs.others:
                session.close()


def on_arm64(target: Target, runs: Arm64Runs) -> Target:
    """The target with its artifact run by ``runs``."""
    name = target.name

    def exact(folder: Path, config: ModelConfig, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        if name == "onnx":
            from .onnx_exact import exact_logits as onnx_logits

            return onnx_logits(folder, config, tokens, lambda where, graph: runs.open_other(name, where, graph))
        from .executorch_exact import exact_logits

        return exact_logits(folder, config, tokens, lambda where: runs.open_other(name, where))

    return replace(
        target,
        open_session=lambda folder, threads: runs.open_shipped(name, folder, threads),
        exact_logits=exact,
        emulate=emulation_on(name, runs.core),
        evaluated_by=lambda: evaluator(name, runs),
        locate=None,
        exactness=None,
        limits={},  # what a target asks for beyond the table rests on its exactness
        notes=(*target.notes, *_notes(name, runs)),
        lint=None,
    )


def _notes(name: str, runs: Arm64Runs) -> tuple[str, ...]:
    emulated = (EMULATED,) if runs.lane is not None else ()
    return emulated + ((FALLBACK,) if arithmetic(name, runs.core) == "onnx-fp32" else ())


def evaluator(name: str, runs: Arm64Runs) -> str:
    """What runs a target's artifact, and on what."""
    if runs.lane is None:
        return f"{get_target(name).evaluated_by()} on this machine's arm64"
    package = "onnxruntime" if name == "onnx" else name
    version = next(wheel.version for wheel in read_lock().wheels if wheel.name == package)
    return f"{package} {version} for aarch64 on an emulated {runs.core}"
