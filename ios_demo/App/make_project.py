"""Writes PocketLM.xcodeproj from project.yml: the same bytes on every machine.

XcodeGen does this on a Mac; this script understands as much of its language as project.yml uses, so that the project
can be made, and checked, where XcodeGen does not run. Needs PyYAML. `python make_project.py [FOLDER]` writes into
FOLDER, or beside this file.

A project file is a table of objects with identifiers of 24 hexadecimal digits; here they are hashes of what each is.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
_FILE_TYPES = {
    ".swift": "sourcecode.swift", ".plist": "text.plist.xml", ".entitlements": "text.plist.entitlements",
    ".xcconfig": "text.xcconfig",
}  # fmt: skip
_PRODUCTS = {
    "application": ("com.apple.product-type.application", "wrapper.application", ".app"),
    "bundle.unit-test": ("com.apple.product-type.bundle.unit-test", "wrapper.cfbundle", ".xctest"),
    "bundle.ui-testing": ("com.apple.product-type.bundle.ui-testing", "wrapper.cfbundle", ".xctest"),
}
_CONFIGURATIONS = ("Debug", "Release")
# What Xcode's template sets for a new project, as far as it changes what is built.
_BASE = {
    "ALWAYS_SEARCH_USER_PATHS": "NO", "CLANG_ENABLE_MODULES": "YES", "CLANG_ENABLE_OBJC_ARC": "YES",
    "ENABLE_USER_SCRIPT_SANDBOXING": "YES", "SDKROOT": "iphoneos", "SWIFT_EMIT_LOC_STRINGS": "NO",
}  # fmt: skip
_OF_CONFIGURATION = {
    "Debug": {
        "DEBUG_INFORMATION_FORMAT": "dwarf", "ENABLE_TESTABILITY": "YES", "GCC_OPTIMIZATION_LEVEL": "0",
        "ONLY_ACTIVE_ARCH": "YES", "SWIFT_ACTIVE_COMPILATION_CONDITIONS": "DEBUG", "SWIFT_OPTIMIZATION_LEVEL": "-Onone",
    },
    "Release": {
        "DEBUG_INFORMATION_FORMAT": "dwarf-with-dsym", "SWIFT_COMPILATION_MODE": "wholemodule",
        "SWIFT_OPTIMIZATION_LEVEL": "-O", "VALIDATE_PRODUCT": "YES",
    },
}  # fmt: skip

Object = dict[str, Any]


class Project:
    """The objects of a project file, collected while they are made."""

    def __init__(self, spec: Mapping[str, Any], root: Path) -> None:
        self.spec = spec
        self.root = root
        self.objects: dict[str, Object] = {}
        self.files: dict[str, str] = {}  # path -> identifier
        self.packages = {name: self._package(name, package) for name, package in spec["packages"].items()}
        self.products = {name: self._product(name, target) for name, target in spec["targets"].items()}
        self.targets: dict[str, str] = {}
        for name, target in spec["targets"].items():
            self.targets[name] = self._target(name, target)
        self.identifier = self._project()

    def add(self, kind: str, key: str, /, **fields: Any) -> str:
        """Add an object; its identifier depends on its kind and key alone, and must be new."""
        identifier = hashlib.sha256(f"{kind}/{key}".encode()).hexdigest()[:24].upper()
        assert identifier not in self.objects, (kind, key)
        self.objects[identifier] = {"isa": kind, **fields}
        return identifier

    def _package(self, name: str, package: Mapping[str, Any]) -> str:
        if "path" in package:
            return self.add("XCLocalSwiftPackageReference", name, relativePath=package["path"])
        requirement = {"kind": "exactVersion", "version": str(package["exactVersion"])}
        return self.add("XCRemoteSwiftPackageReference", name, repositoryURL=package["url"], requirement=requirement)

    def _product(self, name: str, target: Mapping[str, Any]) -> str:
        _, file_type, suffix = _PRODUCTS[target["type"]]
        return self.add(
            "PBXFileReference", f"product {name}", explicitFileType=file_type, includeInIndex=0, path=name + suffix,
            sourceTree="BUILT_PRODUCTS_DIR",
        )  # fmt: skip

    def _file(self, path: str, file_type: str | None = None) -> str:
        """A reference to a file of the repository; its group gives the folder."""
        if path not in self.files:
            assert (self.root / path).exists(), f"{path} does not exist"
            kind = file_type or _FILE_TYPES[Path(path).suffix]
            self.files[path] = self.add(
                "PBXFileReference", path, lastKnownFileType=kind, path=Path(path).name, sourceTree="<group>"
            )
        return self.files[path]

    def _target(self, name: str, target: Mapping[str, Any]) -> str:
        product_type = _PRODUCTS[target["type"]][0]
        sources, resources = self._build_files(name, target)
        packages, dependencies = self._dependencies(name, target)
        phases = [
            self._phase("PBXSourcesBuildPhase", name, sources),
            self._phase("PBXFrameworksBuildPhase", name, [file for file, _ in packages]),
            self._phase("PBXResourcesBuildPhase", name, resources),
        ]
        return self.add(
            "PBXNativeTarget", name, buildConfigurationList=self._configurations(name, target), buildPhases=phases,
            buildRules=[], dependencies=dependencies, name=name,
            packageProductDependencies=[product for _, product in packages], productName=name,
            productReference=self.products[name], productType=product_type,
        )  # fmt: skip

    def _phase(self, kind: str, target: str, files: Sequence[str]) -> str:
        return self.add(
            kind, target, buildActionMask=2147483647, files=list(files), runOnlyForDeploymentPostprocessing=0
        )

    def _build_files(self, name: str, target: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Build files of the sources, and of the resources; files that are neither are only listed."""
        sources, resources = [], []
        for entry in target["sources"]:
            if entry.get("type") == "folder":
                reference = self._file(entry["path"], "folder")
                resources.append(self.add("PBXBuildFile", f"{name} {entry['path']}", fileRef=reference))
                continue
            for path in self._paths(entry):
                reference = self._file(path)
                if path.endswith(".swift"):
                    sources.append(self.add("PBXBuildFile", f"{name} {path}", fileRef=reference))
        return sources, resources

    def _paths(self, entry: Mapping[str, Any]) -> list[str]:
        folder = self.root / entry["path"]
        excluded = {folder / name for name in entry.get("excludes", ())}
        found = (path for path in sorted(folder.iterdir()) if path not in excluded and not path.name.startswith("."))
        return [path.relative_to(self.root).as_posix() for path in found]

    def _dependencies(self, name: str, target: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
        """(build file, product) of each product of a package; dependencies on other targets of the project."""
        packages, targets = [], []
        for entry in target["dependencies"]:
            if "target" in entry:
                targets.append(self._target_dependency(name, entry["target"]))
                continue
            for product in entry.get("products") or [entry["product"]]:
                fields = {"productName": product}
                if "path" not in self.spec["packages"][entry["package"]]:  # Xcode finds local products by name
                    fields["package"] = self.packages[entry["package"]]
                dependency = self.add("XCSwiftPackageProductDependency", f"{name} {product}", **fields)
                packages.append((self.add("PBXBuildFile", f"{name} {product}", productRef=dependency), dependency))
        return packages, targets

    def _target_dependency(self, name: str, other: str) -> str:
        proxy = self.add(
            "PBXContainerItemProxy", f"{name} {other}", containerPortal=_identifier_of_project(),
            proxyType=1, remoteGlobalIDString=self.targets[other], remoteInfo=other,
        )  # fmt: skip
        return self.add("PBXTargetDependency", f"{name} {other}", target=self.targets[other], targetProxy=proxy)

    def _configurations(self, name: str, target: Mapping[str, Any]) -> str:
        identifiers = []
        for configuration in _CONFIGURATIONS:
            settings = _settings(target["settings"]["base"]) | {"PRODUCT_NAME": "$(TARGET_NAME)"}
            fields: Object = {"buildSettings": settings, "name": configuration}
            if "configFiles" in target:
                fields["baseConfigurationReference"] = self._file(target["configFiles"][configuration])
            identifiers.append(self.add("XCBuildConfiguration", f"{name} {configuration}", **fields))
        return self._configuration_list(name, identifiers)

    def _configuration_list(self, name: str, identifiers: list[str]) -> str:
        return self.add(
            "XCConfigurationList", name, buildConfigurations=identifiers, defaultConfigurationIsVisible=0,
            defaultConfigurationName="Release",
        )  # fmt: skip

    def _project(self) -> str:
        shared = _settings(self.spec["settings"]["base"])
        shared["IPHONEOS_DEPLOYMENT_TARGET"] = self.spec["options"]["deploymentTarget"]["iOS"]
        identifiers = [
            self.add(
                "XCBuildConfiguration",
                f"project {name}",
                buildSettings=_BASE | _OF_CONFIGURATION[name] | shared,
                name=name,
            )
            for name in _CONFIGURATIONS
        ]
        products = self.add(
            "PBXGroup", "Products", children=list(self.products.values()), name="Products", sourceTree="<group>"
        )
        identifier = self.add(
            "PBXProject", "project",
            attributes={"BuildIndependentTargetsInParallel": "YES", "LastUpgradeCheck": "1600"},
            buildConfigurationList=self._configuration_list("project", identifiers), compatibilityVersion="Xcode 15.0",
            developmentRegion="en", hasScannedForEncodings=0, knownRegions=["en", "Base"],
            mainGroup=self._groups(products), packageReferences=list(self.packages.values()),
            productRefGroup=products, projectDirPath="", projectRoot="", targets=list(self.targets.values()),
        )  # fmt: skip
        assert identifier == _identifier_of_project()
        return identifier

    def _groups(self, products: str) -> str:
        """A group for each folder that has files, and one of them all."""
        folders: dict[str, list[str]] = {}
        for path, identifier in self.files.items():
            folders.setdefault(str(Path(path).parent), []).append(identifier)
        groups = [
            self.add("PBXGroup", folder, children=children, path=folder, sourceTree="<group>")
            for folder, children in folders.items()
        ]
        return self.add("PBXGroup", "main", children=[*groups, products], sourceTree="<group>")

    def text(self) -> str:
        """The content of project.pbxproj, objects in sections as Xcode writes them."""
        lines = ["// !$*UTF8*$!", "{", "\tarchiveVersion = 1;", "\tclasses = {", "\t};", "\tobjectVersion = 60;"]
        lines.append("\tobjects = {")
        for kind in sorted({fields["isa"] for fields in self.objects.values()}):
            lines += ["", f"/* Begin {kind} section */"]
            for identifier, fields in sorted(self.objects.items()):
                if fields["isa"] == kind:
                    lines.append(f"\t\t{identifier} = {_literal(fields, 2)};")
            lines.append(f"/* End {kind} section */")
        return "\n".join([*lines, "\t};", f"\trootObject = {self.identifier};", "}", ""])


def _identifier_of_project() -> str:
    return hashlib.sha256(b"PBXProject/project").hexdigest()[:24].upper()


def _settings(given: Mapping[str, Any]) -> dict[str, str]:
    """Build settings as strings; YAML reads YES and NO as truth values."""
    return {name: {True: "YES", False: "NO"}.get(value, str(value)) if isinstance(value, bool) else str(value)
            for name, value in given.items()}  # fmt: skip


def _literal(value: Any, depth: int) -> str:
    """A value in the language of old property lists."""
    indent = "\t" * (depth + 1)
    if isinstance(value, Mapping):
        fields = "".join(f"{indent}{_quoted(key)} = {_literal(inner, depth + 1)};\n" for key, inner in value.items())
        return "{\n" + fields + "\t" * depth + "}"
    if isinstance(value, list):
        return "(\n" + "".join(f"{indent}{_literal(inner, depth + 1)},\n" for inner in value) + "\t" * depth + ")"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./]+", text) and "//" not in text:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def scheme(project: Project) -> str:
    """The shared scheme: run and archive the application, test it with the UI tests."""
    (name,) = project.spec["schemes"]
    spec = project.spec["schemes"][name]
    application = _reference(project, name, "      ")
    tests = "\n".join(
        f'         <TestableReference skipped = "NO">\n{_reference(project, test, "            ")}\n'
        "         </TestableReference>"
        for test in spec["test"]["targets"]
    )
    runnable = f"""<BuildableProductRunnable runnableDebuggingMode = "0">
{application}
      </BuildableProductRunnable>"""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Scheme LastUpgradeVersion = "1600" version = "1.7">
   <BuildAction parallelizeBuildables = "YES" buildImplicitDependencies = "YES">
      <BuildActionEntries>
         <BuildActionEntry buildForTesting = "YES" buildForRunning = "YES" buildForProfiling = "YES"
            buildForArchiving = "YES" buildForAnalyzing = "YES">
{_reference(project, name, "            ")}
         </BuildActionEntry>
      </BuildActionEntries>
   </BuildAction>
   <TestAction buildConfiguration = "{spec["test"]["config"]}" shouldUseLaunchSchemeArgsEnv = "YES">
      <Testables>
{tests}
      </Testables>
   </TestAction>
   <LaunchAction buildConfiguration = "{spec["run"]["config"]}" launchStyle = "0" useCustomWorkingDirectory = "NO">
      {runnable}
   </LaunchAction>
   <ProfileAction buildConfiguration = "Release" shouldUseLaunchSchemeArgsEnv = "YES" useCustomWorkingDirectory = "NO">
      {runnable}
   </ProfileAction>
   <AnalyzeAction buildConfiguration = "Debug">
   </AnalyzeAction>
   <ArchiveAction buildConfiguration = "{spec["archive"]["config"]}" revealArchiveInOrganizer = "YES">
   </ArchiveAction>
</Scheme>
"""


def _reference(project: Project, target: str, indent: str) -> str:
    suffix = _PRODUCTS[project.spec["targets"][target]["type"]][2]
    return (
        f'{indent}<BuildableReference BuildableIdentifier = "primary"\n'
        f'{indent}   BlueprintIdentifier = "{project.targets[target]}"\n'
        f'{indent}   BuildableName = "{target}{suffix}" BlueprintName = "{target}"\n'
        f'{indent}   ReferencedContainer = "container:{project.spec["name"]}.xcodeproj">\n'
        f"{indent}</BuildableReference>"
    )


def contents(root: Path = HERE) -> dict[str, str]:
    """Path beside project.yml -> text of every file of the project."""
    spec = yaml.safe_load((root / "project.yml").read_text(encoding="utf-8"))
    project = Project(spec, root)
    (scheme_name,) = spec["schemes"]
    folder = f"{spec['name']}.xcodeproj"
    return {
        f"{folder}/project.pbxproj": project.text(),
        f"{folder}/xcshareddata/xcschemes/{scheme_name}.xcscheme": scheme(project),
    }


def main() -> None:
    """Write the project's files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, text in contents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
