"""Where and how artifacts run on arm64: in the prepared user space under an emulator, or natively."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..export.fetch import cache_folder
from .arm64_lock import read_lock

EMULATOR, RUNNER, PYTHON, READY_FILE = "qemu-aarch64", "lib/arm64_runner", "root/usr/bin/python3.11", "ready"

DEFAULT_CORE = "cortex-a76"
# core -> what it can multiply int8 with, in words; cores of the phones of ten years, by the emulator's names
CORES: Mapping[str, str] = {
    "cortex-a53": "no dot products (phones of 2014 to 2018, the cheapest since)",
    "cortex-a55": "dot products, in order (the small cores of most phones)",
    "cortex-a76": "dot products (the large cores since 2019)",
    "cortex-a710": "matrix products, SVE2 (the large cores since 2022)",
    "max": "all that the emulator knows (newer than any phone)",
}


@dataclass(frozen=True)
class Lane:
    """A prepared user space.

    folder  qemu-aarch64, root, site and lib, as ``prepare`` left them
    """

    folder: Path

    @property
    def is_ready(self) -> bool:
        """Whether it was prepared to the end."""
        return (self.folder / READY_FILE).is_file()

    def emulated(self, core: str, log: Path | None = None) -> list[str]:
        """How a command for arm64 begins; ``log`` receives each instruction when it is first met."""
        logging = [] if log is None else ["-d", "in_asm", "-D", str(log)]
        return [str(self.folder / EMULATOR), "-L", str(self.folder / "root"), "-cpu", core, *logging]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of an emulated process."""
        return {"PYTHONPATH": str(self.folder / "site"), "PYTHONNOUSERSITE": "1", "PATH": "/usr/bin:/bin"}


def is_native() -> bool:
    """Whether this machine is arm64 itself."""
    return platform.machine().lower() in ("arm64", "aarch64")


def find_lane(cache: Path | None = None) -> Lane | None:
    """The prepared lane; None where the machine is arm64. Raises InputError if it was not prepared."""
    if is_native():
        return None
    lane = Lane((cache_folder() if cache is None else cache) / "arm64" / read_lock().digest)
    if not lane.is_ready:
        raise InputError(
            "the arm64 lane is not prepared; run once: pocketlm device prepare arm64 (160 MB of downloads)"
        )
    return lane


def parse_place(place: str) -> str:
    """The core of ``arm64`` or ``arm64:CORE``; raises InputError for anything else."""
    kind, _, core = place.partition(":")
    if kind != "arm64" or (core and core not in CORES):
        raise InputError(f"--on {place}: there are arm64 and, by core, {', '.join(f'arm64:{name}' for name in CORES)}")
    if core and is_native():
        raise InputError(f"--on {place}: this machine is arm64 itself and has the core it has; say --on arm64")
    return "native" if is_native() else core or DEFAULT_CORE


def worker_command(
    lane: Lane | None, core: str, kind: str, arguments: Sequence[str], scratch: Path, log: Path | None
) -> tuple[list[str], dict[str, str] | None]:
    """The command that runs an artifact of this kind on arm64, and its environment (None: this process's own).

    ``scratch`` is an empty folder that lives as long as the process.
    """
    module = ["-m", f"{__package__}.arm64_worker", kind]
    if lane is None:
        return [sys.executable, *module, *arguments], None
    if kind == "executorch":
        return [*lane.emulated(core, log), str(lane.folder / RUNNER), *arguments], lane.environment
    environment = lane.environment
    _link_package(scratch)
    environment["PYTHONPATH"] += f":{scratch}"
    return [*lane.emulated(core, log), str(lane.folder / PYTHON), "-S", *module, *arguments], environment


def _link_package(folder: Path) -> None:
    """Let another Python find this very pocketlm in ``folder``."""
    top = __package__.partition(".")[0]
    (folder / top).mkdir()
    for path in Path(str(importlib.import_module(top).__file__)).parent.glob("*.py"):
        (folder / top / path.name).symlink_to(path)
    for name in ("quantize", "export", "runtimes"):
        location = Path(str(importlib.import_module(f"{top}.{name}").__file__)).parent
        (folder / top / name).symlink_to(location, target_is_directory=True)
