"""iPhones: install the demo app, push a bundle into its Documents folder, have it measured, pull the results as JSON.

What talks to an iPhone is in ``pymobiledevice.py``; here it is what the protocols say. The app is ios_demo/, which
has no look at a folder whose name begins with a dot: a bundle is pushed into one, which is renamed when it is whole.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, changed_files, hash_file, read_manifest
from .progress import Progress, silent

APP = "org.pocketlm.demo"
TARGETS = ("coreml", "executorch")  # what the app runs
_DOCUMENTS = "/Documents"
_PIECE_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # the app compiles a Core ML package into its caches, which takes a little more than this


class Documents(Protocol):
    """An app's Documents folder: methods of pymobiledevice3's HouseArrestService."""

    async def get_device_info(self) -> Mapping[str, str]:
        """``FSFreeBytes`` among others."""
        ...

    async def exists(self, filename: str) -> bool:
        """Whether there is such a file or folder."""
        ...

    async def stat(self, filename: str) -> Mapping[str, Any]:
        """``st_size`` in bytes, among others."""
        ...

    async def makedirs(self, filename: str) -> Any:
        """Make a folder and those above it."""
        ...

    async def fopen(self, filename: str, mode: str) -> int:
        """Open a file; a handle."""
        ...

    async def fwrite(self, handle: int, data: bytes) -> None:
        """Write to an open file."""
        ...

    async def fclose(self, handle: int) -> Any:
        """Close a file."""
        ...

    async def rename(self, source: str, target: str) -> None:
        """Rename a file or folder."""
        ...

    async def rm(self, filename: str, *, force: bool) -> Any:
        """Remove a file, or a folder with all in it."""
        ...

    async def get_file_contents(self, filename: str) -> bytes:
        """The whole of a file."""
        ...


@dataclass(frozen=True)
class Services:
    """What an iPhone is asked for; the serial number comes first.

    serials    of the connected iPhones
    values     what the iPhone says of itself: DeviceName, ProductType, ProductVersion
    documents  the Documents folder of an app, while it is open
    install    an app from an .ipa file
    launch     an app with arguments, in place of one that runs; its process number
    hint       what to do about an exception, None if it is not one of theirs
    """

    serials: Callable[[], Awaitable[Sequence[str]]]
    values: Callable[[str], Awaitable[Mapping[str, Any]]]
    documents: Callable[[str, str], AbstractAsyncContextManager[Documents]]
    install: Callable[[str, Path], Coroutine[Any, Any, None]]
    launch: Callable[[str, str, Sequence[str]], Awaitable[int]]
    hint: Callable[[Exception], str | None]


@dataclass(frozen=True)
class IPhone:
    """A connected iPhone: serial number (UDID), its owner's name for it, Apple's name of the model, version of iOS."""

    serial: str
    name: str
    model: str
    system: str


def list_iphones(services: Services) -> list[IPhone]:
    """All that are connected and trust this computer."""

    async def ask() -> list[IPhone]:
        return [_iphone(serial, await services.values(serial)) for serial in await services.serials()]

    with _one_line(services):
        return asyncio.run(ask())


def _iphone(serial: str, values: Mapping[str, Any]) -> IPhone:
    known = (str(values.get(key, "unknown")) for key in ("DeviceName", "ProductType", "ProductVersion"))
    return IPhone(serial, *known)


def choose_iphone(services: Services, serial: str | None) -> IPhone:
    """The iPhone with this serial number, or the only one; raises InputError if that is none or several."""
    found = [phone for phone in list_iphones(services) if serial in (None, phone.serial)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{phone.serial} ({phone.name})" for phone in found)
        raise InputError(f"{len(found)} iPhones are connected: {names}; name one by its serial number")
    wanted = f"no iPhone {serial} is connected" if serial else "no iPhone is connected"
    raise InputError(f"{wanted}; connect it with a cable, unlock it and trust this computer")


def install_app(services: Services, phone: IPhone, ipa: Path) -> None:
    """Install an .ipa file that is signed for this iPhone; raises InputError if that fails."""
    if not ipa.is_file():
        raise InputError(f"{ipa} does not exist; archive ios_demo/ in Xcode and export it for development")
    with _one_line(services):
        asyncio.run(services.install(phone.serial, ipa))


def push_bundle(services: Services, phone: IPhone, bundle: Path, progress: Progress = silent) -> str:
    """Copy what the app needs of a bundle into its Documents folder; the name that it has there.

    A push that was interrupted goes on where it stopped, file by file. A bundle of the same name is replaced when the
    new one is whole. The app compares all hashes when it opens a bundle.

    Raises InputError if the bundle is damaged, holds nothing that an iPhone runs, or does not fit.
    """
    sizes = _wanted_files(bundle)
    partial = f"{_DOCUMENTS}/.pocketlm-push-{hash_file(bundle / MANIFEST_FILE).sha256[:16]}"
    name = bundle.resolve().name

    async def push() -> None:
        async with services.documents(phone.serial, APP) as documents:
            missing = [path for path in sizes if not await _is_there(documents, f"{partial}/{path}", sizes[path])]
            await _check_space(documents, sum(sizes[path] for path in missing), phone)
            pieces = sum(_pieces(sizes[path]) for path in missing)
            with progress(f"Copying to {phone.name}", pieces) as step:
                for path in missing:
                    await _write(documents, bundle / path, f"{partial}/{path}", step)
            await documents.rm(f"{_DOCUMENTS}/{name}", force=True)
            await documents.rename(partial, f"{_DOCUMENTS}/{name}")

    with _one_line(services):
        asyncio.run(push())
    return name


def _wanted_files(bundle: Path) -> dict[str, int]:
    """Path -> size in bytes of what the app needs, the manifest last."""
    manifest = read_manifest(bundle)
    if not set(TARGETS) & set(manifest.targets):
        raise InputError(f"{bundle}: holds nothing that an iPhone runs; export again with --to coreml")
    changed = changed_files(bundle, manifest)
    if changed:
        raise InputError(f"{bundle}: {changed[0]} is missing or was changed since the export; export again")
    wanted = {
        path: entry.size_bytes
        for path, entry in manifest.files.items()
        if "/" not in path or path.partition("/")[0] in TARGETS
    }
    return wanted | {MANIFEST_FILE: (bundle / MANIFEST_FILE).stat().st_size}


async def _is_there(documents: Documents, path: str, size: int) -> bool:
    return await documents.exists(path) and int((await documents.stat(path))["st_size"]) == size


async def _check_space(documents: Documents, size: int, phone: IPhone) -> None:
    free = int((await documents.get_device_info())["FSFreeBytes"])
    if size + _SPARE_BYTES > free:
        raise InputError(
            f"the bundle needs {(size + _SPARE_BYTES) / 1e6:.0f} MB and {phone.name} has {free / 1e6:.0f} MB left; "
            "make room on it"
        )


def _pieces(size: int) -> int:
    return max(1, -(-size // _PIECE_BYTES))


async def _write(documents: Documents, source: Path, path: str, step: Callable[[], None]) -> None:
    await documents.makedirs(path.rpartition("/")[0])
    handle = await documents.fopen(path, "w")
    try:
        with source.open("rb") as file:
            for _ in range(_pieces(source.stat().st_size)):
                await documents.fwrite(handle, file.read(_PIECE_BYTES))
                step()
    finally:
        await documents.fclose(handle)


def measure(
    services: Services,
    phone: IPhone,
    name: str,
    *,
    target: str | None = None,
    verify: bool = False,
    benchmark: bool = False,
    prompt: str | None = None,
    patience_seconds: float = 900.0,
    pause_seconds: float = 1.0,
) -> dict[str, Any]:
    """Have the app open a bundle and measure it; its report (``Report`` in ios_demo/, see its README).

    Raises InputError if the app cannot be started, writes no report in time, or reports an error.
    """
    output = f"pocketlm-{secrets.token_hex(8)}.json"
    arguments = ["--bundle", name, "--output", output]
    arguments += ["--target", target] if target else []
    arguments += ["--prompt", prompt] if prompt is not None else []
    arguments += ["--verify"] * verify + ["--benchmark"] * benchmark

    async def ask() -> bytes:
        await services.launch(phone.serial, APP, arguments)
        async with services.documents(phone.serial, APP) as documents:
            content = await _wait_for(documents, f"{_DOCUMENTS}/{output}", patience_seconds, pause_seconds)
            await documents.rm(f"{_DOCUMENTS}/{output}", force=True)
            return content

    with _one_line(services):
        report = _parse(asyncio.run(ask()))
    if report.get("error"):
        raise InputError(f"{phone.name}: {report['error']}")
    return report


async def _wait_for(documents: Documents, path: str, patience: float, pause: float) -> bytes:
    """The content of a file that the app writes in one step when it is done."""
    ended = time.monotonic() + patience
    while not await documents.exists(path):
        if time.monotonic() > ended:
            raise InputError(
                f"the app wrote no results within {patience:.0f} seconds; look at its screen, keep the iPhone unlocked"
            )
        await asyncio.sleep(pause)
    return await documents.get_file_contents(path)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        report = json.loads(content)
        if not isinstance(report, dict) or report["schema_version"] != 1:
            raise ValueError("another schema")
    except (ValueError, KeyError) as error:
        raise InputError(f"the app's results cannot be read ({error}); install the app of this version") from error
    return report


@contextmanager
def _one_line(services: Services) -> Iterator[None]:
    """Turn what the services raise into an InputError that says what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        hint = services.hint(error)
        if hint is None:
            raise
        raise InputError(hint) from error
