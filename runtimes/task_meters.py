"""Energy and memory, where the machine can measure them; None where it cannot, and never a guess."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .memory_limit import status_bytes

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"(?:intel|amd)-rapl:\d+")  # with another number behind it is a part of a package


@dataclass(frozen=True)
class Measured:
    """Beside an answer.

    joules             that the machine's processors took meanwhile
    peak_memory_bytes  of the process that answered, so far
    """

    joules: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Counter:
    """One package's energy counter, which starts anew at ``limit`` (microjoules)."""

    path: Path
    limit: int

    def read(self) -> int:
        """Microjoules. Raises OSError or ValueError where there are none."""
        return int(self.path.read_text(encoding="ascii"))


def energy_counters(root: Path = POWERCAP) -> tuple[Counter, ...]:
    """The counters of all processor packages (Linux powercap, RAPL); none where the kernel has none or only root may.

    Only domains named ``package-N``: their parts (core, uncore, dram) and the whole platform (psys) would count twice.
    """
    found = []
    for domain in sorted(root.glob("*")):
        with suppress(OSError, ValueError):
            if _PACKAGE.fullmatch(domain.name) and (domain / "name").read_text(encoding="ascii").startswith("package-"):
                limit = int((domain / "max_energy_range_uj").read_text(encoding="ascii"))
                counter = Counter(domain / "energy_uj", limit)
                counter.read()
                found.append(counter)
    return tuple(found)


@dataclass(frozen=True)
class EnergyMeter:
    """Reads all counters at once. An answer must be shorter than a counter's round, which takes minutes."""

    counters: tuple[Counter, ...]

    def read(self) -> tuple[int, ...] | None:
        """Microjoules of each counter; None if there is none or one cannot be read."""
        try:
            return tuple(counter.read() for counter in self.counters) or None
        except (OSError, ValueError):
            return None

    def joules_since(self, before: tuple[int, ...] | None) -> float | None:
        """Taken since an earlier reading."""
        now = self.read()
        if before is None or now is None:
            return None
        turns = zip(before, now, self.counters, strict=True)
        return sum((b - a) if b >= a else (b - a + counter.limit) for a, b, counter in turns) / 1e6


def own_peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def listener_peak_bytes(port: int) -> int | None:
    """The most memory that the process behind a port of this machine has had; None where it cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    peaks = [status_bytes(process, "VmHWM") for process in _holders(sockets)] if sockets else []
    return max(peaks, default=0) or None


def _listening(port: int) -> Iterator[str]:
    """Inodes of sockets in the state LISTEN on a port (proc(5), /proc/net/tcp)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _holders(sockets: set[str]) -> Iterator[int]:
    """Processes that have one of these sockets open, as far as this user may look."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(entry) in sockets for entry in (folder / "fd").iterdir()):
                yield int(folder.name)
