"""Android phones: the app of android_demo is installed, started by intent, and leaves a file with its results."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, hash_file
from .device import FACTS, READY, BenchSettings, Copy, Phone, Platform, Task
from .device_adb import Adb, list_devices
from .progress import Progress

PACKAGE = "org.pocketlm.app"
ACTIVITY = f"{PACKAGE}/.MainActivity"
BUNDLES = "/data/local/tmp/pocketlm"  # adb may write there on every phone, and every app may read
RESULTS = f"/sdcard/Android/data/{PACKAGE}/files/results"
MINIMUM_SDK = 26
CHUNK = 32 << 20  # bytes that are sent at once: what is lost at most when a phone is unplugged
_ROOM = 64 << 20  # bytes that a phone should have left


def list_phones() -> list[Phone]:
    """All Android phones that adb sees."""
    return [Phone("android", found.serial, found.model, found.trouble or READY) for found in list_devices()]


@dataclass(frozen=True)
class _File:
    """A file of the bundle: what it is here, and there."""

    local: Path
    remote: str
    size: int
    sha256: str


def install(phone: Phone, copy: Copy, progress: Progress, chunk: int = CHUNK) -> None:
    """See Platform. Files that are there already are kept, and a file that was cut off is continued.

    The manifest comes last: the app does not see a bundle that is not whole.
    """
    adb = Adb(phone.serial)
    _check_version(adb)
    folder = f"{BUNDLES}/{copy.name}"
    files = [
        _File(copy.bundle / path, f"{folder}/{path}", entry.size_bytes, entry.sha256)
        for path, entry in copy.manifest.files.items()
        if not path.startswith("coreml/")
    ]
    if copy.facts is not None:
        files.append(_hashed(copy.facts, f"{folder}/{FACTS}"))
    last = _hashed(copy.bundle / MANIFEST_FILE, f"{folder}/{MANIFEST_FILE}")
    if copy.app is not None:
        with progress("Installing the app"):
            _install_app(adb, copy.app)
    there = _remote_sizes(adb, folder)
    if (
        there.get(last.remote) == last.size
        and _remote_hash(adb, last.remote) == last.sha256
        and _all_there(adb, files, there)
    ):
        return
    adb.shell("rm", "-f", last.remote)
    for stale in sorted(
        there.keys()
        - {name for file in files for name in (file.remote, _partial(file))}
        - {last.remote, f"{folder}/{FACTS}"}
    ):
        adb.shell("rm", "-f", stale)
    _check_space(adb, files, there)
    for parent in sorted({file.remote.rpartition("/")[0] for file in [*files, last]}):
        adb.shell("mkdir", "-p", parent)
    steps = sum(-(-file.size // chunk) for file in files) + 1
    with progress(f"Copying {copy.name} to {phone.model or phone.serial}", steps) as step:
        for file in [*files, last]:
            _send(adb, file, there, chunk, step)
    adb.shell("chmod", "-R", "a+rX", BUNDLES)


def _hashed(local: Path, remote: str) -> _File:
    entry = hash_file(local)
    return _File(local, remote, entry.size_bytes, entry.sha256)


def _check_version(adb: Adb) -> None:
    sdk = adb.property("ro.build.version.sdk")
    if not sdk.isdigit():
        raise InputError(f"{adb.serial}: it does not tell its version of Android (ro.build.version.sdk is {sdk!r})")
    if int(sdk) < MINIMUM_SDK:
        release = adb.property("ro.build.version.release") or "?"
        raise InputError(
            f"{adb.serial}: Android {release} (API {sdk}) is too old, the app needs Android 8 (API {MINIMUM_SDK})"
        )


def _install_app(adb: Adb, app: Path) -> None:
    output = adb.run(["install", "-r", str(app)], timeout=600)
    failure = re.search(r"Failure \[([A-Z_]+)", output)
    if failure or "Success" not in output:
        reason = failure[1] if failure else " ".join(output.split())[-200:]
        more = "; remove the app first with: adb uninstall " + PACKAGE if "UPDATE_INCOMPATIBLE" in reason else ""
        raise InputError(f"{adb.serial}: the phone refused the app ({reason}){more}")


def _remote_sizes(adb: Adb, folder: str) -> dict[str, int]:
    """All files below a folder on the phone and their sizes; nothing if there is no such folder."""
    code, output = adb.try_shell("find", folder, "-type", "f", "-exec", "stat", "-c", "%s %n", "{}", ";")
    if code != 0:
        return {}
    pairs = (line.split(" ", 1) for line in output.splitlines() if " /" in line)
    return {name: int(size) for size, name in pairs if size.isdigit()}


def _remote_hash(adb: Adb, path: str) -> str:
    code, output = adb.try_shell("sha256sum", path, timeout=600)
    return output.split()[0] if code == 0 and output.split() else ""


def _all_there(adb: Adb, files: Sequence[_File], there: dict[str, int]) -> bool:
    return all(there.get(file.remote) == file.size and _remote_hash(adb, file.remote) == file.sha256 for file in files)


def _check_space(adb: Adb, files: Sequence[_File], there: dict[str, int]) -> None:
    """Refuse before anything is sent."""
    adb.shell("mkdir", "-p", BUNDLES)
    fields = adb.shell("df", "-k", BUNDLES).splitlines()[-1].split()
    if len(fields) < 4 or not fields[3].isdigit():
        return  # not a df that is known: the copy will tell
    needed = sum(file.size - there.get(file.remote, there.get(_partial(file), 0)) for file in files) + _ROOM
    free = int(fields[3]) * 1024
    if free < needed:
        raise InputError(
            f"{adb.serial}: the bundle needs {needed / 1e6:.0f} MB and the phone has {free / 1e6:.0f} MB free; "
            f"remove something, perhaps old bundles in {BUNDLES}"
        )


def _partial(file: _File) -> str:
    return file.remote + ".partial"


def _send(adb: Adb, file: _File, there: dict[str, int], chunk: int, step: Callable[[], None]) -> None:
    """Bring one file over in pieces, behind what is there of it, and prove it before it gets its name."""
    if there.get(file.remote) == file.size and _remote_hash(adb, file.remote) == file.sha256:
        return
    arrived = there.get(_partial(file), 0)
    if arrived > file.size:
        arrived = 0
    if arrived == 0:
        adb.shell("rm", "-f", _partial(file), file.remote)
        adb.shell("touch", _partial(file))
    with file.local.open("rb") as source, tempfile.TemporaryDirectory() as folder:
        source.seek(arrived)
        while data := source.read(chunk):
            piece, remote_piece = Path(folder) / "piece", f"{BUNDLES}/.piece"
            piece.write_bytes(data)
            adb.push(piece, remote_piece)
            append = f"cat {shlex.quote(remote_piece)} >> {shlex.quote(_partial(file))}"
            adb.shell("sh", "-c", append, timeout=600)
            step()
    adb.try_shell("rm", "-f", f"{BUNDLES}/.piece")
    if _remote_hash(adb, _partial(file)) != file.sha256:
        adb.shell("rm", "-f", _partial(file))
        raise InputError(f"{adb.serial}: {file.remote} did not arrive as it is here; repeat the command")
    adb.shell("mv", _partial(file), file.remote)


def run(phone: Phone, task: Task, timeout: float, progress: Progress, pause: float = 1.0) -> str:
    """See Platform: start the app by intent, wait for its results file, take it away."""
    adb = Adb(phone.serial)
    _check_version(adb)
    name = f"r{uuid.uuid4().hex}"
    path = f"{RESULTS}/{name}.json"
    adb.shell("am", "force-stop", PACKAGE)
    started = adb.shell("am", "start", "-n", ACTIVITY, *_extras(task, name))
    if "Error" in started:
        raise InputError(f"{adb.serial}: the app cannot be started; install it with: pocketlm device install --app APK")
    with progress(f"Waiting for {phone.model or phone.serial}"):
        text = _wait(adb, path, timeout, pause)
    adb.try_shell("rm", "-f", path)
    return text


def _extras(task: Task, name: str) -> list[str]:
    extras = ["--es", "id", name, "--es", "bundle", task.bundle, "--ez", "verify", str(task.verify).lower()]
    if task.target is not None:
        extras += ["--es", "target", task.target]
    if task.bench is not None:
        extras += ["--ez", "bench", "true"]
        for key, value in _numbers(task.bench).items():
            extras += ["--ei", key, str(value)]
    return extras


def _numbers(bench: BenchSettings) -> dict[str, int]:
    fields = ("prompt_tokens", "new_tokens", "runs", "threads", "sustained_seconds")
    return {field: getattr(bench, field) for field in fields if getattr(bench, field) is not None}


def _wait(adb: Adb, path: str, timeout: float, pause: float) -> str:
    """The results file's content, once it is there. The app renames it into its place, so it is whole."""
    deadline = time.monotonic() + timeout
    gone = 0
    while time.monotonic() < deadline:
        code, output = adb.try_shell("cat", path)
        if code == 0:
            return output
        running, _ = adb.try_shell("pidof", PACKAGE)
        gone = 0 if running == 0 else gone + 1
        if gone == 3:
            raise InputError(
                f"{adb.serial}: the app ended without results; the phone may have been short of memory, "
                f"see: adb -s {adb.serial} logcat -d -b crash"
            )
        time.sleep(pause)
    raise InputError(f"{adb.serial}: no results after {timeout:.0f} s; give more time with --timeout")


ANDROID = Platform("android", list_phones, install, run)
