"""The most memory that this process had at once, phase by phase."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .heap import release_freed_memory
from .memory_limit import status_bytes


class PeakMemory:
    """Peak resident memory of each phase, bytes. Pages of mapped files count as long as they are mapped.

    Where the system keeps one maximum for all time (any but Linux), a phase cannot be told from those before it. On
    Windows nothing is known.
    """

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this phase; one may be entered again.

        What was freed before is given back first: it is not this phase's.
        """
        release_freed_memory()
        with suppress(OSError):  # Linux: forget the maximum so far (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        try:
            yield
        finally:
            self.phases[name] = max(self.phases.get(name, 0), peak_bytes())

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.phases.values(), default=0)


def peak_bytes() -> int:
    """Peak resident memory of this process; 0 where the system does not tell."""
    return status_bytes("self", "VmHWM") or _peak_by_rusage()


def resident_bytes() -> int:
    """Resident memory of this process now, or its peak where the system tells only that."""
    return status_bytes("self", "VmRSS") or _peak_by_rusage()


def _peak_by_rusage() -> int:
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
