"""Several small texts into a folder that the user named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write texts by name, over what is there; raises InputError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in files]
