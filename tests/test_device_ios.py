"""iPhones, with fakes where pymobiledevice3 would be: no iPhone was attached to anything that ran this."""

from __future__ import annotations

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
from pocketlm.runtimes.device import READY, BenchSettings, Copy, Phone, Task
from pocketlm.runtimes.device_ios import APP, Documents, Services, arguments, ios
from pocketlm.runtimes.device_results import read_results
from pocketlm.runtimes.progress import silent

SAMPLE = Path(__file__).parents[1] / "ios_demo" / "App" / "PocketLM" / "Sample"
PHONE = Phone("ios", "00008110-0001", "iPhone14,2", READY)
BENCH = BenchSettings(prompt_tokens=8, new_tokens=4, runs=2, sustained_seconds=3)


REPORT = {
    "schema_version": 1,
    "kind": "device",
    "device": {"platform": "ios", "model": "iPhone14,2", "system": "iOS 18.1"},
    "bundle": {"name": "sample", "manifest_sha256": "0" * 64},
    "verify": {"coreml": {"kl": 1e-7, "tolerance_kl": 1e-6, "passed": True}},
}


class PhoneError(Exception):
    """What the fakes raise where the library raises its own."""


@dataclass
class FakePhone:
    """An iPhone with the demo app: files by path, and an app that answers when it is started.

    breaks_after   writes that succeed before the cable is pulled
    report         what the app writes, None if it never does
    system         version of iOS, None if the iPhone does not trust this computer
    """

    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"/Documents"})
    free: int = 1 << 30
    system: str | None = "18.1"
    app: str = APP
    breaks_after: int | None = None
    report: dict[str, Any] | bytes | None = field(default_factory=lambda: dict(REPORT))
    writes: list[str] = field(default_factory=list)
    launched: list[Sequence[str]] = field(default_factory=list)
    installed: list[Path] = field(default_factory=list)
    open_files: dict[int, str] = field(default_factory=dict)

    def services(self, serials: Sequence[str] = (PHONE.serial,)) -> Services:
        async def list_serials() -> Sequence[str]:
            return serials

        async def values(serial: str) -> dict[str, str]:
            if self.system is None:
                raise PhoneError("not trusted")
            return {"ProductType": PHONE.model, "ProductVersion": self.system}

        @asynccontextmanager
        async def documents(serial: str, app: str) -> AsyncIterator[Documents]:
            assert (serial, app) == (PHONE.serial, self.app)
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
        assert source in self.phone.folders or source in self.phone.files
        assert target not in self.phone.folders
        assert target.rpartition("/")[0] in self.phone.folders

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


def push(
    phone: FakePhone, bundle: Path, app: Path | None = None, name: str = "Sample", facts: Path | None = None
) -> None:
    ios(phone.services).install(PHONE, Copy(bundle, read_manifest(bundle), name, app, facts), silent)


def test_iphones_are_listed_with_what_keeps_them_from_use() -> None:
    assert ios(FakePhone().services).list_phones() == [PHONE]
    (old,) = ios(FakePhone(system="17.6").services).list_phones()
    assert "too old" in old.state
    (locked,) = ios(FakePhone(system=None).services).list_phones()
    assert locked.state == "hint: not trusted"


def test_without_the_library_there_are_no_iphones() -> None:
    platform = ios(lambda: None)
    assert platform.list_phones() == []
    assert "pip install 'pocketlm[ios]'" in refusal(lambda: platform.run(PHONE, Task("Sample"), 1.0, silent))


def test_a_bundle_arrives_as_it_is(bundle: Path) -> None:
    phone = FakePhone()
    push(phone, bundle, name="other")
    there = {path.removeprefix("/Documents/other/"): content for path, content in phone.files.items()}
    assert there == {path: (bundle / path).read_bytes() for path in [*read_manifest(bundle).files, "pocketlm.json"]}
    assert phone.writes[-1].endswith("/pocketlm.json")
    assert not any("push" in path for path in phone.folders)


def test_an_index_comes_with_the_bundle_and_stays(bundle: Path) -> None:
    phone, facts = FakePhone(), Path(__file__).parent / "golden" / "facts.db"
    push(phone, bundle, facts=facts)
    assert phone.files["/Documents/Sample/facts.db"] == facts.read_bytes()
    push(phone, bundle)
    assert phone.files["/Documents/Sample/facts.db"] == facts.read_bytes()
    assert phone.files["/Documents/Sample/golden.json"] == (bundle / "golden.json").read_bytes()
    push(phone, bundle, facts=bundle / "tokenizer.json")
    assert phone.files["/Documents/Sample/facts.db"] == (bundle / "tokenizer.json").read_bytes()


def test_what_no_iphone_runs_stays_here(bundle: Path) -> None:
    manifest = json.loads((bundle / "pocketlm.json").read_text())
    (bundle / "onnx").mkdir()
    (bundle / "onnx" / "model.onnx").write_bytes(b"x")
    manifest["files"]["onnx/model.onnx"] = {"size_bytes": 1, "sha256": "0" * 64}
    (bundle / "pocketlm.json").write_text(json.dumps(manifest))
    phone = FakePhone()
    push(phone, bundle)
    assert not any("onnx" in path for path in phone.files)


def test_an_interrupted_push_goes_on(bundle: Path) -> None:
    phone = FakePhone(breaks_after=4)
    assert refusal(lambda: push(phone, bundle)) == "hint: the cable was pulled"
    assert "/Documents/Sample" not in phone.folders
    sent = list(phone.writes)
    phone.breaks_after = None
    push(phone, bundle)
    assert "/Documents/Sample" in phone.folders
    again = phone.writes[len(sent) :]
    assert not set(sent) & set(again), "a file that had arrived was sent again"
    assert phone.files["/Documents/Sample/golden.json"] == (bundle / "golden.json").read_bytes()


def test_a_file_that_was_cut_off_is_sent_again(bundle: Path) -> None:
    phone = FakePhone()
    push(phone, bundle)
    (partial,) = {path.rpartition("/")[0] for path in phone.writes if path.endswith("/golden.json")}
    whole = (bundle / "tokenizer.json").read_bytes()
    phone.files = {f"{partial}/golden.json": b"cut", f"{partial}/tokenizer.json": whole}
    phone.folders, phone.writes = {"/Documents", partial}, []
    push(phone, bundle)
    assert phone.files["/Documents/Sample/golden.json"] == (bundle / "golden.json").read_bytes()
    assert not any(path.endswith("/tokenizer.json") for path in phone.writes)


def test_a_bundle_of_the_same_name_is_replaced(bundle: Path) -> None:
    phone = FakePhone()
    phone.folders |= {"/Documents/Sample"}
    phone.files["/Documents/Sample/old"] = b"old"
    push(phone, bundle)
    assert "/Documents/Sample/old" not in phone.files


def test_bundles_that_cannot_be_used_are_not_pushed(bundle: Path) -> None:
    full = FakePhone(free=1000)
    assert "has 0 MB left" in refusal(lambda: push(full, bundle))
    good = Path(__file__).parent / "golden" / "bundle" / "good"
    assert "--to coreml" in refusal(lambda: push(full, good))
    assert not full.writes
    assert not full.files


def test_the_app_comes_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    phone = FakePhone()
    push(phone, bundle, tmp_path / "a.ipa")
    assert phone.installed == [tmp_path / "a.ipa"]


def test_the_app_is_started_and_its_report_is_pulled() -> None:
    phone = FakePhone()
    task = Task("Sample", "coreml", verify=True, bench=BENCH)
    results = read_results(ios(phone.services).run(PHONE, task, 5.0, silent), "the test")
    assert results.passed
    assert results.bundle == "sample"
    (given,) = phone.launched
    assert list(given) == arguments(task, given[given.index("--output") + 1])
    assert phone.files == {}, "the report was left behind"


def test_the_app_knows_the_arguments() -> None:
    """What is sent is what ios_demo/ reads."""
    swift = (SAMPLE.parents[2] / "Sources" / "PocketCore" / "LaunchArguments.swift").read_text()
    sent = [given for given in arguments(Task("a", "coreml", True, BENCH), "b.json") if given.startswith("--")]
    assert len(sent) == 9
    assert all(f'case "{argument}"' in swift for argument in sent)


def test_an_app_that_was_signed_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_IOS_APP", "com.example.pocketlm")
    phone = FakePhone(app="com.example.pocketlm")
    assert read_results(ios(phone.services).run(PHONE, Task("Sample", verify=True), 5.0, silent), "the test").passed


def test_an_app_that_says_nothing() -> None:
    platform = ios(FakePhone(report=None).services, pause_seconds=0.01)
    assert "wrote no results" in refusal(lambda: platform.run(PHONE, Task("Sample", verify=True), 0.02, silent))


def test_errors_of_our_own_are_not_disguised() -> None:
    async def broken() -> Sequence[str]:
        raise ZeroDivisionError

    services = Services(**{**FakePhone().services().__dict__, "serials": broken})
    with pytest.raises(ZeroDivisionError):
        ios(lambda: services).list_phones()


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
    assert services is not None
    assert services.hint(exceptions.AppNotInstalledError("x")) == pymobiledevice.HINTS["AppNotInstalledError"]
    assert services.hint(ValueError()) is None
    assert pymobiledevice.IOS.list_phones() == [], "an iPhone is attached"
