"""iPhones, with fakes where pymobiledevice3 would be: no iPhone was attached to anything that ran this."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pocketlm.errors import InputError
from pocketlm.export.bundle import read_manifest
from pocketlm.runtimes import pymobiledevice
from pocketlm.runtimes.device_ios import (
    APP,
    Documents,
    IPhone,
    Services,
    choose_iphone,
    install_app,
    list_iphones,
    measure,
    push_bundle,
)

SAMPLE = Path(__file__).parents[1] / "ios_demo" / "App" / "PocketLM" / "Sample"
PHONE = IPhone("00008110-0001", "Ada's iPhone", "iPhone14,2", "18.1")


class PhoneError(Exception):
    """What the fakes raise where the library raises its own."""


@dataclass
class FakePhone:
    """An iPhone with the demo app: files by path, and an app that answers when it is started.

    breaks_after   writes that succeed before the cable is pulled
    report         what the app writes, None if it never does
    """

    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"/Documents"})
    free: int = 1 << 30
    breaks_after: int | None = None
    report: dict[str, Any] | bytes | None = field(default_factory=lambda: {"schema_version": 1, "bundle": "Sample"})
    writes: list[str] = field(default_factory=list)
    launched: list[Sequence[str]] = field(default_factory=list)
    installed: list[Path] = field(default_factory=list)
    open_files: dict[int, str] = field(default_factory=dict)

    def services(self, serials: Sequence[str] = (PHONE.serial,)) -> Services:
        async def list_serials() -> Sequence[str]:
            return serials

        async def values(serial: str) -> dict[str, str]:
            return {"DeviceName": PHONE.name, "ProductType": PHONE.model, "ProductVersion": PHONE.system}

        @asynccontextmanager
        async def documents(serial: str, app: str) -> AsyncIterator[Documents]:
            assert (serial, app) == (PHONE.serial, APP)
            yield FakeDocuments(self)

        async def install(serial: str, ipa: Path) -> None:
            self.installed.append(ipa)

        async def launch(serial: str, app: str, arguments: Sequence[str]) -> int:
            self.launched.append(arguments)
            if self.report is not None:
                text = self.report if isinstance(self.report, bytes) else json.dumps(self.report).encode()
                self.files[f"/Documents/{arguments[arguments.index('--output') + 1]}"] = text
            return 7

        def hint(error: Exception) -> str | None:
            return f"hint: {error}" if isinstance(error, PhoneError) else None

        return Services(list_serials, values, documents, install, launch, hint)


class FakeDocuments:
    """AFC as the library shows it: no open file in a folder that is not there, no rename onto a folder that is."""

    def __init__(self, phone: FakePhone) -> None:
        self.phone = phone

    async def get_device_info(self) -> dict[str, str]:
        return {"FSFreeBytes": str(self.phone.free)}

    async def exists(self, filename: str) -> bool:
        return filename in self.phone.files or filename in self.phone.folders

    async def stat(self, filename: str) -> dict[str, Any]:
        return {"st_size": len(self.phone.files[filename])}

    async def makedirs(self, filename: str) -> None:
        parts = filename.split("/")
        self.phone.folders |= {"/".join(parts[: count + 1]) for count in range(1, len(parts))}

    async def fopen(self, filename: str, mode: str) -> int:
        assert filename.rpartition("/")[0] in self.phone.folders
        assert mode == "w"
        self.phone.files[filename] = b""
        handle = len(self.phone.open_files) + 1
        self.phone.open_files[handle] = filename
        return handle

    async def fwrite(self, handle: int, data: bytes) -> None:
        if self.phone.breaks_after is not None and len(self.phone.writes) >= self.phone.breaks_after:
            raise PhoneError("the cable was pulled")
        self.phone.writes.append(self.phone.open_files[handle])
        self.phone.files[self.phone.open_files[handle]] += data

    async def fclose(self, handle: int) -> None:
        self.phone.open_files[handle] = ""

    async def rename(self, source: str, target: str) -> None:
        assert source in self.phone.folders
        assert target not in self.phone.folders

        def moved(path: str) -> str:
            return target + path[len(source) :] if path == source or path.startswith(f"{source}/") else path

        self.phone.files = {moved(path): content for path, content in self.phone.files.items()}
        self.phone.folders = {moved(path) for path in self.phone.folders}

    async def rm(self, filename: str, *, force: bool) -> None:
        assert force

        def kept(path: str) -> bool:
            return path != filename and not path.startswith(f"{filename}/")

        self.phone.files = {path: content for path, content in self.phone.files.items() if kept(path)}
        self.phone.folders = {path for path in self.phone.folders if kept(path)}

    async def get_file_contents(self, filename: str) -> bytes:
        return self.phone.files[filename]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "Sample"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_iphones_are_listed_and_chosen() -> None:
    phone = FakePhone()
    assert list_iphones(phone.services()) == [PHONE]
    assert choose_iphone(phone.services(), None) == PHONE
    two = phone.services((PHONE.serial, "other"))
    assert choose_iphone(two, PHONE.serial) == PHONE
    assert "2 iPhones are connected" in refusal(lambda: choose_iphone(two, None))
    assert "no iPhone x is connected" in refusal(lambda: choose_iphone(two, "x"))
    assert "connect it with a cable" in refusal(lambda: choose_iphone(phone.services(()), None))


def test_a_bundle_arrives_as_it_is(bundle: Path) -> None:
    phone = FakePhone()
    assert push_bundle(phone.services(), PHONE, bundle) == "Sample"
    there = {path.removeprefix("/Documents/Sample/"): content for path, content in phone.files.items()}
    assert there == {path: (bundle / path).read_bytes() for path in [*read_manifest(bundle).files, "pocketlm.json"]}
    assert phone.writes[-1].endswith("/pocketlm.json")
    assert not any("push" in path for path in phone.folders)


def test_what_no_iphone_runs_stays_here(bundle: Path) -> None:
    manifest = json.loads((bundle / "pocketlm.json").read_text())
    (bundle / "onnx").mkdir()
    (bundle / "onnx" / "model.onnx").write_bytes(b"x")
    manifest["files"]["onnx/model.onnx"] = {
        "size_bytes": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    (bundle / "pocketlm.json").write_text(json.dumps(manifest))
    phone = FakePhone()
    push_bundle(phone.services(), PHONE, bundle)
    assert not any("onnx" in path for path in phone.files)


def test_an_interrupted_push_goes_on(bundle: Path) -> None:
    phone = FakePhone(breaks_after=4)
    assert refusal(lambda: push_bundle(phone.services(), PHONE, bundle)) == "hint: the cable was pulled"
    assert "/Documents/Sample" not in phone.folders
    sent = list(phone.writes)
    phone.breaks_after = None
    push_bundle(phone.services(), PHONE, bundle)
    assert "/Documents/Sample" in phone.folders
    again = phone.writes[len(sent) :]
    assert not set(sent) & set(again), "a file that had arrived was sent again"
    assert phone.files["/Documents/Sample/golden.json"] == (bundle / "golden.json").read_bytes()


def test_a_file_that_was_cut_off_is_sent_again(bundle: Path) -> None:
    phone = FakePhone()
    push_bundle(phone.services(), PHONE, bundle)
    (partial,) = {path.rpartition("/")[0] for path in phone.writes if path.endswith("/golden.json")}
    phone.files = {
        f"{partial}/golden.json": b"cut",
        f"{partial}/tokenizer.json": (bundle / "tokenizer.json").read_bytes(),
    }
    phone.folders, phone.writes = {"/Documents", partial}, []
    push_bundle(phone.services(), PHONE, bundle)
    assert phone.files["/Documents/Sample/golden.json"] == (bundle / "golden.json").read_bytes()
    assert not any(path.endswith("/tokenizer.json") for path in phone.writes)


def test_a_bundle_of_the_same_name_is_replaced(bundle: Path) -> None:
    phone = FakePhone()
    phone.folders |= {"/Documents/Sample"}
    phone.files["/Documents/Sample/old"] = b"old"
    push_bundle(phone.services(), PHONE, bundle)
    assert "/Documents/Sample/old" not in phone.files


def test_bundles_that_cannot_be_used_are_not_pushed(bundle: Path, tmp_path: Path) -> None:
    phone = FakePhone()
    full = FakePhone(free=1000)
    assert "has 0 MB left" in refusal(lambda: push_bundle(full.services(), PHONE, bundle))
    assert not full.writes
    (bundle / "golden.json").write_text("{}")
    assert "golden.json is missing or was changed" in refusal(lambda: push_bundle(phone.services(), PHONE, bundle))
    good = Path(__file__).parent / "golden" / "bundle" / "good"
    assert "--to coreml" in refusal(lambda: push_bundle(phone.services(), PHONE, good))
    assert "not a bundle" in refusal(lambda: push_bundle(phone.services(), PHONE, tmp_path))
    assert not phone.files


def test_the_app_is_started_and_its_report_is_pulled() -> None:
    phone = FakePhone()
    report = measure(phone.services(), PHONE, "Sample", target="coreml", verify=True, benchmark=True, prompt="Hi")
    assert report["bundle"] == "Sample"
    (arguments,) = phone.launched
    assert arguments[:2] == ["--bundle", "Sample"]
    assert arguments[4:] == ["--target", "coreml", "--prompt", "Hi", "--verify", "--benchmark"]
    assert phone.files == {}, "the report was left behind"


def test_the_app_knows_the_arguments() -> None:
    """What is sent is what ios_demo/ reads."""
    swift = SAMPLE.parents[2] / "Sources" / "PocketCore" / "LaunchArguments.swift"
    phone = FakePhone()
    measure(phone.services(), PHONE, "Sample", target="coreml", verify=True, benchmark=True, prompt="Hi")
    sent = {argument for argument in phone.launched[0] if argument.startswith("--")}
    assert len(sent) == 6
    assert all(f'case "{argument}"' in swift.read_text() for argument in sent)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (None, "wrote no results within 0 seconds"),
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        ({"schema_version": 2}, "another schema"),
        (
            {"schema_version": 1, "error": "this model needs about 900 MB"},
            "Ada's iPhone: this model needs about 900 MB",
        ),
    ],
)
def test_reports_that_are_none(report: Any, words: str) -> None:
    phone = FakePhone(report=report)
    assert words in refusal(
        lambda: measure(phone.services(), PHONE, "Sample", verify=True, patience_seconds=0.02, pause_seconds=0.01)
    )


def test_installing(tmp_path: Path) -> None:
    phone = FakePhone()
    assert "does not exist" in refusal(lambda: install_app(phone.services(), PHONE, tmp_path / "a.ipa"))
    (tmp_path / "a.ipa").write_bytes(b"zip")
    install_app(phone.services(), PHONE, tmp_path / "a.ipa")
    assert phone.installed == [tmp_path / "a.ipa"]


def test_errors_of_our_own_are_not_disguised() -> None:
    phone = FakePhone(report={"schema_version": 1})

    async def broken() -> Sequence[str]:
        raise ZeroDivisionError

    services = Services(**{**phone.services().__dict__, "serials": broken})
    with pytest.raises(ZeroDivisionError):
        list_iphones(services)


def test_the_library_has_what_is_asked_of_it() -> None:
    """Where pymobiledevice3 is installed: its names and parameters, and that its exceptions get their hints."""
    pytest.importorskip("pymobiledevice3")
    from pymobiledevice3 import exceptions
    from pymobiledevice3.services.dvt.instruments.process_control import ProcessControl
    from pymobiledevice3.services.house_arrest import HouseArrestService

    assert all(hasattr(exceptions, name) for name in pymobiledevice.HINTS)
    for name in ("get_device_info", "exists", "stat", "makedirs", "fopen", "fwrite", "fclose", "rename", "rm"):
        assert hasattr(HouseArrestService, name)
    assert {"bundle_id", "arguments", "kill_existing"} <= set(inspect.signature(ProcessControl.launch).parameters)
    services = pymobiledevice.services()
    assert services.hint(exceptions.AppNotInstalledError("x")) == pymobiledevice.HINTS["AppNotInstalledError"]
    assert services.hint(exceptions.ConnectionFailedToUsbmuxdError()) is not None
    assert services.hint(ValueError()) is None
    with pytest.raises(exceptions.PyMobileDevice3Exception):  # nothing here speaks to iPhones
        asyncio.run(services.serials())
