"""What can be checked of ios_demo/ without a Mac and without a Swift compiler; with one, `make test` does more."""

from __future__ import annotations

import importlib.util
import json
import plistlib
import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tree_sitter_swift
import yaml
from pbxproj import XcodeProject
from pocketlm.export.bundle import changed_files, read_manifest
from pocketlm.runtimes.coreml_session import open_coreml
from pocketlm.runtimes.golden import read_golden, replay_kl
from pocketlm.runtimes.judge import shipped_logits
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "ios_demo"
APP = DEMO / "App"
PROJECT = APP / "PocketLM.xcodeproj" / "project.pbxproj"
SWIFT = sorted(path for path in DEMO.rglob("*.swift") if ".build" not in path.parts)


@cache
def parser() -> Parser:
    return Parser(Language(tree_sitter_swift.language()))


@pytest.mark.parametrize("path", SWIFT, ids=lambda path: path.relative_to(DEMO).as_posix())
def test_swift_parses(path: Path) -> None:
    assert not parser().parse(path.read_bytes()).root_node.has_error


def test_the_parser_sees_a_missing_brace() -> None:
    path = DEMO / "Sources" / "PocketCore" / "Sampling.swift"
    assert parser().parse(path.read_bytes().rstrip()[:-1]).root_node.has_error


def imports(path: Path) -> set[str]:
    def walk(node: Node) -> list[str]:
        if node.type == "import_declaration":
            return [node.text.decode().split()[-1]]
        return [name for child in node.children for name in walk(child)]

    return set(walk(parser().parse(path.read_bytes()).root_node))


def test_packages_import_in_one_direction() -> None:
    """PocketCore needs Foundation and SQLite alone, to build on Linux; the runtimes know it and not each other."""
    allowed = {
        "PocketCore": {"Foundation", "CryptoKit", "SQLite3", "CSQLite"},
        "PocketCoreML": {"Foundation", "CoreML", "PocketCore"},
        "PocketExecuTorch": {"Foundation", "ExecuTorch", "PocketCore"},
    }
    for target, modules in allowed.items():
        for path in (DEMO / "Sources" / target).rglob("*.swift"):
            assert imports(path) <= modules, path.name
            if target != "PocketCore":
                assert path.read_text().startswith("#if canImport("), path.name


def test_the_manifest_names_the_folders() -> None:
    text = (DEMO / "Package.swift").read_text()
    declared = set(re.findall(r"\.(target|testTarget)\(\s*name: \"(\w+)\"", text))
    folders = {("target", path.name) for path in (DEMO / "Sources").iterdir()} - {("target", "CSQLite")}
    folders |= {("testTarget", path.name) for path in (DEMO / "Tests").iterdir()}
    assert declared == folders
    assert '.systemLibrary(name: "CSQLite"' in text
    assert (DEMO / "Sources" / "CSQLite" / "module.modulemap").is_file()
    assert all(list((DEMO / parent / name).glob("*.swift")) for parent, name in _parents(declared))
    assert set(re.findall(r"\.library\(name: \"(\w+)\"", text)) == {name for kind, name in declared if kind == "target"}


def _parents(declared: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return [("Sources" if kind == "target" else "Tests", name) for kind, name in declared]


def test_interfaces_cover_what_is_imported() -> None:
    """Whatever the code imports is declared for typecheck.sh, comes with Swift, or is our own."""
    ours = {"PocketCore", "PocketCoreML", "PocketExecuTorch", "PocketLM"}
    with_swift = {"Foundation", "Observation", "XCTest", "CryptoKit", "PackageDescription", "SQLite3", "CSQLite"}
    declared = {path.stem for path in (DEMO / "Interfaces").glob("*.swift")}
    used = set().union(*(imports(path) for path in SWIFT if path.parent.name != "Interfaces"))
    assert used - ours - with_swift <= declared


def make_project() -> Any:
    spec = importlib.util.spec_from_file_location("make_project", APP / "make_project.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_project_is_what_the_script_writes() -> None:
    written = make_project().contents()
    committed = {
        path.relative_to(APP).as_posix(): path.read_text()
        for path in PROJECT.parent.rglob("*")
        if path.is_file() and "xcuserdata" not in path.parts
    }
    assert committed == written, "run: python ios_demo/App/make_project.py"


@pytest.fixture(scope="module")
def project() -> XcodeProject:
    return XcodeProject.load(str(PROJECT))


def test_every_identifier_of_the_project_is_an_object(project: XcodeProject) -> None:
    text = PROJECT.read_text()
    assert set(re.findall(r"\b[0-9A-F]{24}\b", text)) == set(project.objects.get_keys())


def files_of(project: XcodeProject) -> dict[str, Path]:
    """Identifier of each file that is no product -> where its groups say it is."""
    found = {}
    for group in project.objects.get_objects_in_section("PBXGroup"):
        folder = APP / group.path if "path" in group else APP
        for child in group.children:
            reference = project.objects[child]
            if reference.isa == "PBXFileReference" and reference.sourceTree == "<group>":
                found[child] = folder / reference.path
    return found


def test_every_file_that_the_project_names_exists(project: XcodeProject) -> None:
    references = project.objects.get_objects_in_section("PBXFileReference")
    files = files_of(project)
    assert len(files) == sum(reference.sourceTree == "<group>" for reference in references)
    assert all(path.exists() for path in files.values())


@pytest.mark.parametrize("target", ["PocketLM", "PocketLMTests", "PocketLMUITests"])
def test_every_source_is_compiled_into_its_target(project: XcodeProject, target: str) -> None:
    files = files_of(project)
    (found,) = project.objects.get_targets(target)
    phases = [project.objects[phase] for phase in found.buildPhases]
    sources = next(phase for phase in phases if phase.isa == "PBXSourcesBuildPhase")
    compiled = {files[project.objects[file].fileRef] for file in sources.files}
    assert compiled == set((APP / target).glob("*.swift"))
    resources = next(phase for phase in phases if phase.isa == "PBXResourcesBuildPhase")
    copied = {files[project.objects[file].fileRef].name for file in resources.files}
    assert copied == ({"Sample"} if target == "PocketLM" else set())


def test_settings_name_files_that_exist() -> None:
    spec = yaml.safe_load((APP / "project.yml").read_text())
    base = spec["targets"]["PocketLM"]["settings"]["base"]
    assert (APP / base["CODE_SIGN_ENTITLEMENTS"]).is_file()
    assert (APP / base["INFOPLIST_FILE"]).is_file()
    package = APP / spec["packages"]["Pocket"]["path"]
    assert (package / "Package.swift").resolve() == (DEMO / "Package.swift").resolve()
    assert (
        f".iOS(.v{spec['options']['deploymentTarget']['iOS'].partition('.')[0]})"
        in (package / "Package.swift").read_text()
    )


def test_the_scheme_refers_to_targets(project: XcodeProject) -> None:
    scheme = ElementTree.parse(PROJECT.parent / "xcshareddata" / "xcschemes" / "PocketLM.xcscheme")
    references = list(scheme.iter("BuildableReference"))
    assert {item.attrib["BlueprintName"] for item in references} == {"PocketLM", "PocketLMTests", "PocketLMUITests"}
    for item in references:
        target = project.objects[item.attrib["BlueprintIdentifier"]]
        assert target.name == item.attrib["BlueprintName"]
        assert project.objects[target.productReference].path == item.attrib["BuildableName"]


def test_plists() -> None:
    information = plistlib.loads((APP / "PocketLM" / "Info.plist").read_bytes())
    assert information["UIFileSharingEnabled"] is True
    assert information["LSSupportsOpeningDocumentsInPlace"] is True
    entitlements = plistlib.loads((APP / "PocketLM" / "PocketLM.entitlements").read_bytes())
    assert entitlements == {"com.apple.developer.kernel.increased-memory-limit": True}


def test_the_sample_is_a_sound_bundle() -> None:
    sample = APP / "PocketLM" / "Sample"
    manifest = read_manifest(sample)
    assert changed_files(sample, manifest) == []
    assert {path.relative_to(sample).as_posix() for path in sample.rglob("*") if path.is_file()} == {
        *manifest.files,
        "pocketlm.json",
    }
    assert manifest.targets == ("coreml",)
    golden = read_golden(sample)
    shipped = shipped_logits(open_coreml(sample / "coreml"), golden.evaluation)
    expected = golden.targets["coreml"]
    assert replay_kl(expected["expected"], shipped) <= expected["tolerance_kl"]


def test_the_vectors_that_swift_reads_exist() -> None:
    tests = [*(DEMO / "Tests").rglob("*.swift"), *(APP / "PocketLMTests").glob("*.swift")]
    named = {name for path in tests for name in re.findall(r'"([\w/]+\.json)"', path.read_text())}
    vectors = {name for name in named if (ROOT / "tests" / "golden" / name).is_file()}
    assert {"sampling.json", "chat_turns.json", "bundle/broken.json", "replay.json", "awkward_ids.json"} <= vectors
    assert all(json.loads((ROOT / "tests" / "golden" / name).read_text()) for name in vectors)
