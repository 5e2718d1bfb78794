"""Phones that are connected: list them, put a bundle on one, let it verify and measure. A record for each platform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import Manifest, changed_files, read_manifest
from .device_results import DeviceResults, read_results
from .progress import Progress, silent
from .search_index import IndexSource

READY = "ready"
FACTS = "facts.db"  # an index's name on a phone, in the folder of the bundle


@dataclass(frozen=True)
class Phone:
    """A connected phone; ``state`` is READY, or says why it cannot be used and what to do."""

    platform: str
    serial: str
    model: str
    state: str


@dataclass(frozen=True)
class Task:
    """What the app is to do with an installed bundle; ``bench`` has the settings, or is None."""

    bundle: str
    target: str | None = None
    verify: bool = False
    bench: BenchSettings | None = None


@dataclass(frozen=True)
class BenchSettings:
    """As for `pocketlm bench`; then the same again for ``sustained_seconds``. The phone chooses the threads if None."""

    prompt_tokens: int = 256
    new_tokens: int = 64
    runs: int = 5
    threads: int | None = None
    sustained_seconds: int = 0


@dataclass(frozen=True)
class Copy:
    """What goes to a phone.

    bundle, manifest  folder of a bundle and its manifest
    name              the bundle's name there
    app               file of the app, None to leave the one that is there
    facts             an index of `pocketlm index`, None to leave the one that is there
    """

    bundle: Path
    manifest: Manifest
    name: str
    app: Path | None = None
    facts: Path | None = None


@dataclass(frozen=True)
class Platform:
    """How phones of one kind are reached. All functions raise InputError with what is wrong and what to do.

    list_phones   all that are connected, usable or not
    install       phone, what to copy, progress
    run           phone, task, seconds to wait -> the results file's content
    """

    name: str
    list_phones: Callable[[], list[Phone]]
    install: Callable[[Phone, Copy, Progress], None]
    run: Callable[[Phone, Task, float, Progress], str]


def platforms() -> tuple[Platform, ...]:
    """All kinds of phones that are known."""
    from .device_android import ANDROID
    from .pymobiledevice import IOS

    return (ANDROID, IOS)


def list_phones(known: Sequence[Platform] | None = None) -> list[Phone]:
    """All connected phones."""
    return [phone for platform in known or platforms() for phone in platform.list_phones()]


def choose_phone(serial: str | None, known: Sequence[Platform] | None = None) -> tuple[Platform, Phone]:
    """The phone with this serial number, or the only one; raises InputError if there is none, or several."""
    found = [(platform, phone) for platform in known or platforms() for phone in platform.list_phones()]
    if serial is not None:
        found = [(platform, phone) for platform, phone in found if phone.serial == serial]
    if not found:
        which = f"no phone {serial} is" if serial else "no phone is"
        raise InputError(
            f"{which} connected; plug one in, allow USB debugging on it, and look with: pocketlm device list"
        )
    if len(found) > 1:
        serials = ", ".join(phone.serial for _, phone in found)
        raise InputError(f"{len(found)} phones are connected ({serials}); choose one with --serial")
    platform, phone = found[0]
    if phone.state != READY:
        raise InputError(f"{phone.serial}: {phone.state}")
    return platform, phone


def bundle_name(bundle: Path) -> str:
    """What a bundle is called on a phone: the name of its folder, with characters that every shell takes."""
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_"
        for letter in bundle.resolve().name
    )
    return kept.lstrip("._-") or "bundle"


def install(
    bundle: Path,
    app: Path | None = None,
    serial: str | None = None,
    progress: Progress = silent,
    facts: Path | None = None,
) -> Phone:
    """Put a bundle, and if given the app and an index, on a phone.

    Every file is there whole and proven by its hash, or not at all. Raises InputError for a damaged bundle or index, or
    whatever keeps it off the phone.
    """
    manifest = read_manifest(bundle)
    changed = changed_files(bundle, manifest)
    if changed:
        raise InputError(f"{bundle}: {changed[0]} is missing or was changed since the export; export again")
    if app is not None and not app.is_file():
        raise InputError(f"{app} is missing; build the app first (android_demo/README.md, ios_demo/README.md)")
    if facts is not None:
        IndexSource(facts)  # refuses what is no index
    platform, phone = choose_phone(serial)
    platform.install(phone, Copy(bundle, manifest, bundle_name(bundle), app, facts), progress)
    return phone


def run(task: Task, serial: str | None = None, timeout: float = 1800, progress: Progress = silent) -> DeviceResults:
    """Let the app work, and fetch what it found; raises InputError if it could not do it."""
    platform, phone = choose_phone(serial)
    results = read_results(platform.run(phone, task, timeout, progress), f"the results of {phone.serial}")
    if results.error is not None:
        raise InputError(f"{phone.serial}: {results.error}")
    return results


def phones_json(phones: Sequence[Phone]) -> list[dict[str, Any]]:
    """Phones as JSON."""
    return [
        {"platform": phone.platform, "serial": phone.serial, "model": phone.model, "state": phone.state}
        for phone in phones
    ]
