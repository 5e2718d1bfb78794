"""Reading a saved .mlpackage: its description, and its functions; constants stay in weight.bin until they are used."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from .mil_function import MilFunction, read_function


def import_coremltools() -> Any:
    """The coremltools module; raises InputError if it is not installed.

    The first import remarks on every package that it knows in another version, and on the parts that only a Mac has;
    that is kept from the user.
    """
    loaded = sys.modules.get("coremltools")
    if loaded is not None:
        return loaded
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            import coremltools
    except ImportError as error:
        raise InputError("coremltools is not installed; run: pip install 'pocketlm[coreml]'") from error
    return coremltools


class MilPackage:
    """A saved package. Functions are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the description; raises InputError if the package is missing or damaged."""
        self.path = path
        tools = import_coremltools()
        if not path.is_dir():
            raise InputError(f"{path} is missing; export the model again with --to coreml")
        for part in (path, *path.rglob("*")):  # a pipe would never end, and a link may lead anywhere
            if part.is_symlink() or not (part.is_dir() or part.is_file()):
                raise InputError(f"{part}: is no ordinary file; export the model again")
        try:
            _check_manifest(path / "Manifest.json")
            self.spec: Any = tools.utils.load_spec(str(path))
        except Exception as error:  # protobuf's and the package library's errors have no common class
            raise InputError(f"{path}: not a readable package ({reason(error)}); export it again") from error
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise InputError(f"{path}: not an ML Program; export it again")
        self._functions: dict[str, MilFunction] = {}

    @property
    def function_names(self) -> tuple[str, ...]:
        """All entry points, the default first."""
        described = [function.name for function in self.spec.description.functions]
        return tuple(described or self.spec.mlProgram.functions)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the package says about itself."""
        return dict(self.spec.description.metadata.userDefined)

    def number(self, key: str) -> int:
        """A number of the metadata; raises InputError if it is none."""
        text = self.metadata.get(key, "")
        if not text.isdecimal():
            raise InputError(f"{self.path}: its metadata has no number {key}; export the model again")
        return int(text)

    @property
    def weights_path(self) -> Path:
        """The file that holds the constants."""
        return self.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"

    def function(self, name: str) -> MilFunction:
        """A function by name; raises InputError if it is not there or weight.bin is damaged."""
        if name not in self._functions:
            if name not in self.function_names:
                raise InputError(f"{self.path}: it has no function {name}, only {', '.join(self.function_names)}")
            try:
                self._functions[name] = read_function(name, self.spec.mlProgram.functions[name], self.weights_path)
            except Exception as error:  # whatever the first inconsistency leads to
                raise InputError(f"{self.path}: function {name} cannot be read ({reason(error)})") from error
        return self._functions[name]


def _check_manifest(path: Path) -> None:
    """Raise ValueError if the package's manifest leads out of the package."""
    for item in json.loads(path.read_text(encoding="utf-8"))["itemInfoEntries"].values():
        place = PurePosixPath(item["path"])
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"its manifest names {item['path']}, outside the package")


def reason(error: Exception) -> str:
    """The first line of an error that somebody else raises, with its class."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
