"""A session whose artifact runs in another process, on arm64, under a phone's memory limit."""

from __future__ import annotations

import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from .memory_limit import MemoryLimit, limit_memory, status_bytes
from .session import ArtifactError, check_tokens

_FAILED = -1  # as in arm64_worker


@dataclass(frozen=True)
class Memory:
    """The memory that an artifact took.

    peak_bytes   growth of the process's resident memory since before it loaded
    limit_bytes  that it was held to, by ``limited_by`` (cgroup, rlimit); None if it was not
    """

    peak_bytes: int
    limit_bytes: int | None = None
    limited_by: str | None = None


class PipeSession:
    """See Session; the other side is ``arm64_worker`` or ``data/arm64_runner.cpp``, which say what goes through."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, limit_bytes: int | None = None
    ) -> None:
        """Start the process, hold it to ``limit_bytes`` of memory, and load.

        Raises ArtifactError if it cannot, or needs more.
        """
        self._errors = TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            env=None if environment is None else dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._limit: MemoryLimit | None = None
        self._limit_bytes, self._peak_bytes, self._position = limit_bytes, 0, 0
        try:
            self._numbers(1)
            self._before = status_bytes(self._process.pid, "VmRSS")
            if limit_bytes is not None:
                self._limit = limit_memory(self._process.pid, limit_bytes)
            self._send([])
            _, self._context, self._vocab_size, self._most = self._numbers(4)
        except ArtifactError:
            self.close()
            raise

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        return self._context

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def position(self) -> int:
        """Tokens in the cache now."""
        return self._position

    @property
    def memory(self) -> Memory:
        """What was taken so far."""
        if self._process.poll() is None:
            self._peak_bytes = max(0, status_bytes(self._process.pid, "VmHWM") - self._before)
        limited_by = None if self._limit is None else self._limit.kind
        return Memory(self._peak_bytes, None if limited_by is None else self._limit_bytes, limited_by)

    def reset(self) -> None:
        """Forget the conversation."""
        self._send([])
        self._numbers(1)
        self._position = 0

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Session. Raises ArtifactError if the process ends."""
        logits: NDArray[np.float32] = self.run_all(tokens)[-1]
        return logits

    def run_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; float32 (n, vocab_size): logits of each call's last token, all if the artifact gives them."""
        check_tokens(self, tokens)
        chunks = [tokens[start : start + self._most] for start in range(0, len(tokens), self._most)]
        logits = []
        for chunk in chunks:
            self._send(chunk)
            (rows,) = self._numbers(1)
            content = self._read(rows * self._vocab_size * 4)
            logits.append(np.frombuffer(content, "<f4").reshape(rows, self._vocab_size))
            self._position += len(chunk)
        return np.concatenate(logits)

    def close(self) -> None:
        """End the process; what it took stays known."""
        if self._process.poll() is None:
            _ = self.memory
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            stream.close()
        if self._limit is not None:
            self._limit.release()

    def _send(self, tokens: Sequence[int]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack(f"<{len(tokens) + 1}i", len(tokens), *tokens))
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def _numbers(self, count: int) -> tuple[int, ...]:
        """So many numbers, unless the first says that the other side failed."""
        (first,) = struct.unpack("<i", self._read(4))
        if first == _FAILED:
            (length,) = struct.unpack("<i", self._read(4))
            raise self._failure(self._read(length).decode("utf-8", "replace"))
        return (first, *struct.unpack(f"<{count - 1}i", self._read(4 * (count - 1))))

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        if len(content) < size:
            raise self._failure()
        return content

    def _failure(self, reason: str | None = None) -> ArtifactError:
        """What to say of a process that has given up: that memory ran out, or what it said, or how it ended."""
        if reason is None:
            code = self._process.wait()
            died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            self._errors.seek(0)
            last = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            reason = ": ".join([died, *last])
        if self._limit is not None and (self._limit.reached() or _tells_of_memory(reason)):
            assert self._limit_bytes is not None
            return ArtifactError(f"memory: needs more than {self._limit_bytes / 1e6:.0f} MB ({self._limit.kind})")
        return ArtifactError(f"runtime: could not run ({' '.join(reason.split())[:200]})")


def _tells_of_memory(reason: str) -> bool:
    """Whether a failed allocation is what a runtime complains of; each has its own words for it."""
    lowered = reason.lower()
    return any(words in lowered for words in ("out of memory", "alloc", "cannot map", "mmap"))
