"""Debian packages and wheels for the arm64 lane, through the machine's own apt and pip, each held against its hash."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from .arm64_lock import Lock, Package

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def download_packages(lock: Lock, folder: Path, mirror: str | None) -> dict[str, Path]:
    """All .deb files in ``folder``, by ``name:architecture``; those that are there already are not fetched again.

    apt runs with lists and sources of its own and touches nothing of the machine's. Raises InputError if one cannot be
    had, or is not the expected file.
    """
    found = {f"{package.name}:{package.architecture}": folder / package.file_name for package in lock.packages}
    missing = [package for package in lock.packages if not _is(folder / package.file_name, package.sha256)]
    if not missing:
        return found
    with tempfile.TemporaryDirectory(prefix="apt-", dir=folder) as scratch:
        options = _private_apt(Path(scratch), lock.suites, mirror or _mirror())
        _apt([*options, "update"], folder, "the list of packages could not be fetched")
        _apt([*options, "download", *(package.requirement for package in missing)], folder, _GONE)
    for package in missing:
        _check(folder / package.file_name, package)
    return found


_GONE = "a package could not be fetched; if the mirror no longer has the pinned version, a newer pocketlm may know it"


def _check(path: Path, package: Package) -> None:
    if not _is(path, package.sha256):
        path.unlink(missing_ok=True)
        raise InputError(
            f"{package.name} {package.version} is not the expected file (its sha256 differs); check the mirror"
        )


def _is(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _mirror() -> str:
    """The Debian archive that the machine's apt is set up with; raises InputError on another distribution."""
    release = platform.freedesktop_os_release()
    ask = ["apt-get", "update", "--print-uris"]
    done = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    # the release itself, not its security updates, which are another archive
    found = re.findall(rf"'(\S+/debian/?)/dists/{release.get('VERSION_CODENAME', '-')}/InRelease'", done.stdout)
    if release.get("ID") != "debian" or not found:
        raise InputError("this machine's apt knows no Debian archive; name a mirror of it with --mirror URL")
    return str(found[0])


def _private_apt(scratch: Path, suites: Sequence[str], mirror: str) -> list[str]:
    """apt's options to work in ``scratch`` alone, for amd64 and arm64."""
    if not _KEYRING.is_file():
        raise InputError(
            f"{_KEYRING} is missing, with which Debian's archive is checked; install debian-archive-keyring"
        )
    for name in ("state/lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    sources = "".join(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in suites)
    (scratch / "sources.list").write_text(sources, encoding="utf-8")
    settings = {
        "Dir::State": f"{scratch}/state",
        "Dir::State::status": f"{scratch}/status",
        "Dir::Cache": f"{scratch}/cache",
        "Dir::Etc::SourceList": f"{scratch}/sources.list",
        "Dir::Etc::SourceParts": os.devnull,
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",  # else apt warns that its own user cannot write here
    }
    options = [f"-o{key}={value}" for key, value in settings.items()]
    return [*options, "-oAPT::Architectures::=amd64", "-oAPT::Architectures::=arm64", "-qq"]


def _apt(arguments: Sequence[str], folder: Path, trouble: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise InputError(f"{trouble} (apt: {errors[0][3:] if errors else done.stderr.strip()[-200:]})")


def download_wheels(lock: Lock, folder: Path) -> list[Path]:
    """All wheels, which pip checks against their hashes; raises InputError if one cannot be had."""
    target = folder / "wheels"
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in lock.wheels), encoding="utf-8")
    version = lock.python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", str(target), "--requirement", str(requirements)]
    command += ["--implementation", "cp", "--python-version", version, "--abi", f"cp{version}"]
    command += [part for tag in _platform_tags() for part in ("--platform", tag)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels: Mapping[str, Path] = {path.name.partition("-")[0]: path for path in target.glob("*.whl")}
    if done.returncode != 0 or any(wheel.name not in wheels for wheel in lock.wheels):
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InputError(f"pip could not download the aarch64 wheels ({errors[-1] if errors else done.stderr[-200:]})")
    return [wheels[wheel.name] for wheel in lock.wheels]


def _platform_tags() -> list[str]:
    return [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64"]
