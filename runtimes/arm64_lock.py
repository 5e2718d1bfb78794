"""What the arm64 lane is made of: packages and wheels, each pinned by version and hash."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Package:
    """A Debian package; ``sha256`` is that of the .deb."""

    name: str
    version: str
    architecture: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As apt-get takes it."""
        return f"{self.name}:{self.architecture}={self.version}".replace(":all", "")

    @property
    def file_name(self) -> str:
        """As apt-get names what it downloads."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


@dataclass(frozen=True)
class Wheel:
    """A wheel for aarch64 Linux."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As a line of a requirements file, with its hash."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Lock:
    """All that is downloaded.

    suites    of the Debian archive
    python    version of the root's Python, which the wheels are made for
    emulator, compiler (for the machine itself), root (for arm64): Debian packages
    digest    names this set of files, and the sources that are built against them
    """

    suites: tuple[str, ...]
    python: str
    wheels: tuple[Wheel, ...]
    emulator: tuple[Package, ...]
    compiler: tuple[Package, ...]
    root: tuple[Package, ...]
    digest: str

    @property
    def packages(self) -> tuple[Package, ...]:
        """All Debian packages."""
        return self.emulator + self.compiler + self.root


def read_lock() -> Lock:
    """The lock file of this version of pocketlm."""
    content: dict[str, Any] = tomllib.loads((DATA / "arm64.toml").read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    for name in ("arm64.toml", "arm64_runner.cpp", "arm64_no_torch.cpp"):
        digest.update((DATA / name).read_bytes())
    return Lock(
        suites=tuple(content["suites"]),
        python=content["python"],
        wheels=tuple(Wheel(**entry) for entry in content["wheels"]),
        emulator=tuple(Package(**entry) for entry in content["emulator"]),
        compiler=tuple(Package(**entry) for entry in content["compiler"]),
        root=tuple(Package(**entry) for entry in content["root"]),
        digest=digest.hexdigest()[:12],
    )
