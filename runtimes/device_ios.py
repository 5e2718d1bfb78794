"""iPhones: the app of ios_demo/ is installed, started with arguments, and leaves a file with its results.

What talks to an iPhone is in ``pymobiledevice.py``; here it is what the protocols say. The app does not look at folders
whose names begin with a dot: a bundle is pushed into one, which is renamed when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, hash_file
from .device import FACTS, READY, Copy, Phone, Platform, Task
from .progress import Progress

APP = "org.pocketlm.demo"
TARGETS = ("coreml", "executorch")  # what the app runs
MINIMUM_SYSTEM = 18
_DOCUMENTS = "/Documents"
_PIECE_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # the app compiles a Core ML package into its caches
_PAUSE_SECONDS = 1.0


def app_identifier() -> str:
    """The app's identifier: who signs it may have to choose another than ours."""
    return os.environ.get("POCKETLM_IOS_APP", APP)


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
    values     what the iPhone says of itself: ProductType, ProductVersion
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


def ios(open_services: Callable[[], Services | None], pause_seconds: float = _PAUSE_SECONDS) -> Platform:
    """iPhones as the other commands know phones; ``open_services`` gives None where nothing talks to them."""

    def listed() -> list[Phone]:
        services = open_services()
        return [] if services is None else list_iphones(services)

    def install(phone: Phone, copy: Copy, progress: Progress) -> None:
        install_bundle(_needed(open_services), phone, copy, progress)

    def run(phone: Phone, task: Task, timeout: float, progress: Progress) -> str:
        return run_task(_needed(open_services), phone, task, timeout, progress, pause_seconds)

    return Platform("ios", listed, install, run)


def _needed(open_services: Callable[[], Services | None]) -> Services:
    services = open_services()
    if services is None:
        raise InputError("iPhones need pymobiledevice3; pip install 'pocketlm[ios]'")
    return services


def list_iphones(services: Services) -> list[Phone]:
    """All that are connected, usable or not."""

    async def ask() -> list[Phone]:
        return [await _describe(services, serial) for serial in await services.serials()]

    with _one_line(services):
        return asyncio.run(ask())


async def _describe(services: Services, serial: str) -> Phone:
    try:
        values = await services.values(serial)
    except Exception as error:
        hint = services.hint(error)
        if hint is None:
            raise
        return Phone("ios", serial, "iPhone", hint)
    system = str(values.get("ProductVersion", "0"))
    old = int(system.partition(".")[0]) < MINIMUM_SYSTEM
    state = f"iOS {system} is too old, the app needs {MINIMUM_SYSTEM}; update the iPhone" if old else READY
    return Phone("ios", serial, str(values.get("ProductType", "iPhone")), state)


def install_bundle(services: Services, phone: Phone, copy: Copy, progress: Progress) -> None:
    """See Platform. A copy that was cut off goes on file by file; an older bundle stays until the new one is whole.

    AFC, Apple's file protocol, knows no hashes: sizes are compared here, and the app compares all hashes when it opens
    the bundle.
    """
    files = _wanted_files(copy)
    sizes = {path: local.stat().st_size for path, local in files.items()}
    of = [hash_file(path).sha256[:16] for path in (copy.facts, copy.bundle / MANIFEST_FILE) if path is not None]
    partial, final = f"{_DOCUMENTS}/.pocketlm-push-{'-'.join(of)}", f"{_DOCUMENTS}/{copy.name}"

    async def push() -> None:
        async with services.documents(phone.serial, app_identifier()) as documents:
            missing = [path for path in sizes if not await _is_there(documents, f"{partial}/{path}", sizes[path])]
            await _check_space(documents, sum(sizes[path] for path in missing), phone)
            pieces = sum(_pieces(sizes[path]) for path in missing)
            with progress(f"Copying {copy.name} to {phone.model}", pieces) as step:
                for path in missing:
                    await _write(documents, files[path], f"{partial}/{path}", step)
            if copy.facts is None and await documents.exists(f"{final}/{FACTS}"):
                await documents.rename(f"{final}/{FACTS}", f"{partial}/{FACTS}")
            await documents.rm(final, force=True)
            await documents.rename(partial, final)

    with _one_line(services):
        if copy.app is not None:
            with progress("Installing the app"):
                asyncio.run(services.install(phone.serial, copy.app))
        asyncio.run(push())


def _wanted_files(copy: Copy) -> dict[str, Path]:
    """Path there -> file here of what the app needs, the manifest last."""
    if not set(TARGETS) & set(copy.manifest.targets):
        raise InputError(f"{copy.bundle}: holds nothing that an iPhone runs; export again with --to coreml")
    wanted = {
        path: copy.bundle / path for path in copy.manifest.files if "/" not in path or path.partition("/")[0] in TARGETS
    }
    facts = {} if copy.facts is None else {FACTS: copy.facts}
    return wanted | facts | {MANIFEST_FILE: copy.bundle / MANIFEST_FILE}


async def _is_there(documents: Documents, path: str, size: int) -> bool:
    return await documents.exists(path) and int((await documents.stat(path))["st_size"]) == size


async def _check_space(documents: Documents, size: int, phone: Phone) -> None:
    free = int((await documents.get_device_info())["FSFreeBytes"])
    if size + _SPARE_BYTES > free:
        raise InputError(
            f"the bundle needs {(size + _SPARE_BYTES) / 1e6:.0f} MB and {phone.model} has {free / 1e6:.0f} MB left; "
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


def run_task(
    services: Services,
    phone: Phone,
    task: Task,
    timeout: float,
    progress: Progress,
    pause_seconds: float = _PAUSE_SECONDS,
) -> str:
    """See Platform. The app writes its results in one step when it is done."""
    output = f"pocketlm-{secrets.token_hex(8)}.json"

    async def ask() -> bytes:
        await services.launch(phone.serial, app_identifier(), arguments(task, output))
        async with services.documents(phone.serial, app_identifier()) as documents:
            content = await _wait_for(documents, f"{_DOCUMENTS}/{output}", timeout, pause_seconds)
            await documents.rm(f"{_DOCUMENTS}/{output}", force=True)
            return content

    with progress(f"Waiting for {phone.model}; keep it unlocked"), _one_line(services):
        return asyncio.run(ask()).decode("utf-8", errors="replace")


def arguments(task: Task, output: str) -> list[str]:
    """What the app is started with: see LaunchArguments.swift. Core ML and ExecuTorch choose their threads there."""
    given = ["--bundle", task.bundle, "--output", output]
    given += ["--target", task.target] if task.target else []
    given += ["--verify"] * task.verify
    if task.bench is not None:
        bench = task.bench
        given += ["--benchmark", "--prompt-tokens", str(bench.prompt_tokens), "--new-tokens", str(bench.new_tokens)]
        given += ["--runs", str(bench.runs), "--sustained", str(bench.sustained_seconds)]
    return given


async def _wait_for(documents: Documents, path: str, patience: float, pause: float) -> bytes:
    ended = time.monotonic() + patience
    while not await documents.exists(path):
        if time.monotonic() > ended:
            raise InputError(
                f"the app wrote no results within {patience:.0f} seconds; look at its screen, keep the iPhone unlocked"
            )
        await asyncio.sleep(pause)
    return await documents.get_file_contents(path)


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
