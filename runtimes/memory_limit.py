"""Holding a running process to the memory that a phone gives an app: by a control group if one can be made, or rlimit.

Either counts from now on: what the process has taken so far (an emulator, an interpreter) is not the artifact's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A limit in force.

    kind     what enforces it
    reached  whether the process was killed for it; always False for rlimit, where its allocations fail instead
    release  to be called when the process has ended
    """

    kind: str
    reached: Callable[[], bool]
    release: Callable[[], None]


def limit_memory(process: int, size_bytes: int) -> MemoryLimit | None:
    """Let the process take no more than ``size_bytes`` beyond what it has; None where no limit can be set."""
    for attempt in (_with_cgroup_v2, _with_cgroup_v1, _with_rlimit):
        with suppress(OSError, ValueError):
            found = attempt(process, size_bytes)
            if found is not None:
                return found
    return None


def _own_cgroup(controller: str) -> str | None:
    """This process's place in the hierarchy of a controller; "" asks for version 2."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.strip("/")
    return None


def _with_cgroup_v2(process: int, size_bytes: int) -> MemoryLimit | None:
    """Works for root, or where the user owns a group that hands memory on to its children."""
    place = _own_cgroup("")
    if place is None or "memory" not in (_CGROUP / place / "cgroup.subtree_control").read_text().split():
        return None
    group = _new_group(_CGROUP / place, process)
    try:
        (group / "memory.max").write_text(str(size_bytes))
        with suppress(OSError):
            (group / "memory.swap.max").write_text("0")
        (group / "cgroup.procs").write_text(str(process))
    except OSError:
        group.rmdir()
        raise
    return MemoryLimit("cgroup", lambda: _counter(group / "memory.events", "oom_kill") > 0, lambda: _remove(group))


def _with_cgroup_v1(process: int, size_bytes: int) -> MemoryLimit | None:
    place = _own_cgroup("memory")
    if place is None:
        return None
    group = _new_group(_CGROUP / "memory" / place, process)
    try:
        (group / "memory.limit_in_bytes").write_text(str(size_bytes))
        with suppress(OSError):
            (group / "memory.memsw.limit_in_bytes").write_text(str(size_bytes))
        (group / "cgroup.procs").write_text(str(process))
    except OSError:
        group.rmdir()
        raise
    return MemoryLimit("cgroup", lambda: _counter(group / "memory.oom_control", "oom_kill") > 0, lambda: _remove(group))


def _new_group(parent: Path, process: int) -> Path:
    group = parent / f"pocketlm-{process}"
    group.mkdir()
    return group


def _counter(path: Path, name: str) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(line[1]) for line in lines if line[0] == name), 0)


def _remove(group: Path) -> None:
    with suppress(OSError):  # a group that will not go is empty, and goes with the machine
        group.rmdir()


def _with_rlimit(process: int, size_bytes: int) -> MemoryLimit | None:
    """RLIMIT_DATA counts private writable memory: what is mapped from the artifact's file does not count."""
    if sys.platform != "linux":
        return None
    import resource  # Windows has none

    limit = status_bytes(process, "VmData") + size_bytes
    resource.prlimit(process, resource.RLIMIT_DATA, (limit, limit))
    return MemoryLimit("rlimit", lambda: False, lambda: None)


def status_bytes(process: int | str, name: str) -> int:
    """A size of a process ("self": this one), by its name in /proc/PID/status; 0 where there is no such file."""
    path = Path(f"/proc/{process}/status")
    if not os.path.exists(path):
        return 0
    lines = (line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    return next((int(line[1]) * 1024 for line in lines if line and line[0] == f"{name}:"), 0)
