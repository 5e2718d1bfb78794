"""Folders that several tests share, gone when the run ends."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp


def scratch_folder() -> Path:
    """A new empty folder."""
    folder = Path(mkdtemp(prefix="pocketlm-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
