"""ExecuTorch's own flatbuffer schemas, and its compiler for them: no import of executorch, which takes ten seconds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError

PROGRAM_SCHEMA = "schema/program.fbs"
XNNPACK_SCHEMA = "backends/xnnpack/serialization/schema.fbs"

MISSING = "ExecuTorch is not installed; run: pip install 'pocketlm[executorch]'"


def package_folder() -> Path:
    """Where the executorch package lies; raises InputError if it is not installed."""
    spec = importlib.util.find_spec("executorch")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / PROGRAM_SCHEMA).is_file():
            return Path(place)
    raise InputError(MISSING)


def compile_flatbuffers(schema: str, contents: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """One flatbuffer for each content (JSON as the schema has it), by the flatc that executorch brings."""
    package = package_folder()
    with TemporaryDirectory() as scratch:
        sources = [Path(scratch) / f"{index}.json" for index in range(len(contents))]
        for source, content in zip(sources, contents, strict=True):
            source.write_text(json.dumps(content))
        command = [
            str(package / "data/bin/flatc"),
            "--binary",
            "-o",
            scratch,
            str(package / schema),
            *map(str, sources),
        ]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise RuntimeError(f"flatc refused what we wrote: {(outcome.stdout + outcome.stderr)[-2000:]}")
        results = [
            next(p for p in Path(scratch).glob(f"{index}.*") if p.suffix != ".json") for index in range(len(contents))
        ]
        return [result.read_bytes() for result in results]
