"""Answers that are finished, one a line, so that a run that was ended goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from ..export.fetch import cache_folder
from .task_meters import Measured
from .task_scoring import VERSION, Outcome, Spent

_FORMAT = 1


def default_folder() -> Path:
    """Where results are kept if no folder is named."""
    return cache_folder() / "eval"


class ResultsFile:
    """What one side answered under the same settings, by the digests of items. Close it when done.

    about  what identifies the side and its settings; it names the file, and its first line shows it. No secrets.
    """

    def __init__(self, folder: Path, name: str, about: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open for reading and appending; ``fresh`` forgets what is there.

        Raises InputError if the folder cannot be written, the file is damaged, or another run is writing it.
        """
        content = json.dumps({"format": _FORMAT, "scoring": VERSION, **about}, sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-.')[:60] or 'results'}-{key}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InputError(f"{self.path}: another run is writing these results; wait for it") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); name another with --results") from error
        if fresh:
            self._file.truncate(0)
        self.known = self._read()
        if not self._file.seek(0, os.SEEK_END):
            self._write(json.loads(content))

    def _read(self) -> dict[str, tuple[Outcome, Measured]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)  # a killed run may have left the beginning of a line
        found = {}
        for number, line in enumerate(content[:whole].splitlines()[1:], 2):
            try:
                entry = json.loads(line)
                outcome = entry["outcome"] | {"spent": Spent(**entry["outcome"]["spent"])}
                found[entry["item"]] = Outcome(**outcome), Measured(**entry["measured"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}, line {number}: is damaged; begin anew with --fresh") from error
        return found

    def add(self, item: str, outcome: Outcome, measured: Measured) -> None:
        """Keep one answer; it is in the file when this returns."""
        self._write({"item": item, "outcome": asdict(outcome), "measured": asdict(measured)})
        self.known[item] = outcome, measured

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Let others write."""
        self._file.close()
