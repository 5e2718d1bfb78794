"""What can be known of android_demo without Java: its builds agree, core is free of Android, packages are aligned."""

from __future__ import annotations

import importlib.util
import re
import struct
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[1] / "android_demo"
PAGE = 16384


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEMO / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_builds_take_the_same_versions() -> None:
    catalogue = tomllib.loads((DEMO / "gradle" / "libs.versions.toml").read_text())["versions"]
    maven = dict(re.findall(r"<(\w+)\.version>([^<]+)<", (DEMO / "pom.xml").read_text()))
    common = catalogue.keys() & maven.keys()
    assert common == {"kotlin", "gson", "onnxruntime", "junit", "djl"}
    assert {name: catalogue[name] for name in common} == {name: maven[name] for name in common}
    assert f"ORT_VERSION={maven['onnxruntime']}\n" in (DEMO / "scripts" / "apk.sh").read_text()


def test_core_knows_nothing_of_android() -> None:
    sources = list((DEMO / "core" / "src" / "main").rglob("*.kt"))
    assert len(sources) > 15
    for source in sources:
        assert not re.search(r"^import (android|androidx|java\.awt|org\.pytorch)\b", source.read_text(), re.M), source


def test_no_file_has_outgrown_its_purpose() -> None:
    assert [path.name for path in DEMO.rglob("*.kt") if len(path.read_text().splitlines()) > 300] == []


def elf(*alignments: int) -> bytes:
    """A 64-bit ELF header and LOAD segments with these alignments."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, len(alignments))
    return bytes(header) + b"".join(struct.pack("<II6Q", 1, 5, 0, 0, 0, 0, 0, value) for value in alignments)


@pytest.mark.parametrize("name", ["a.so", "longer/lib/arm64-v8a/liba.so"])
def test_libraries_are_aligned_to_pages(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "in.apk", tmp_path / "out.apk"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("classes.dex", b"dex" * 7, zipfile.ZIP_STORED)
        file.writestr("AndroidManifest.xml", b"x" * 99, zipfile.ZIP_DEFLATED)
        file.writestr(name, elf(PAGE, PAGE), zipfile.ZIP_STORED)
        file.writestr("res/icon.xml", b"icon", zipfile.ZIP_STORED)
    script("align").align(str(source), str(target), PAGE)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
        assert new.testzip() is None
        assert [entry.filename for entry in new.infolist()] == [entry.filename for entry in old.infolist()]
        for entry in new.infolist():
            assert new.read(entry) == old.read(entry.filename)
            offset = script("check_apk").data_offset(new, entry)
            if entry.compress_type == zipfile.ZIP_STORED:
                assert offset % (PAGE if entry.filename.endswith(".so") else 4) == 0
    assert script("check_apk").problems(str(target), PAGE) == []


@pytest.mark.parametrize(
    ("content", "kind", "problem"),
    [
        (elf(PAGE, 4096), zipfile.ZIP_STORED, "LOAD segments aligned to [16384, 4096]"),
        (elf(), zipfile.ZIP_STORED, "LOAD segments aligned to []"),
        (elf(PAGE), zipfile.ZIP_DEFLATED, "is compressed"),
        (elf(PAGE), zipfile.ZIP_STORED, "does not start at a page"),
    ],
)
def test_libraries_that_are_not_are_found(tmp_path: Path, content: bytes, kind: int, problem: str) -> None:
    path = tmp_path / "x.apk"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("liba.so", content, kind)
    assert problem in "; ".join(script("check_apk").problems(str(path), PAGE))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("classes.dex", b"")
    assert script("check_apk").problems(str(path), PAGE) == ["there are no native libraries"]
