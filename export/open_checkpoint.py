"""From what a user names a model by to the reader of its files."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .checkpoint import Checkpoint
from .fetch import KNOWN, fetch
from .gguf_reader import GgufReader
from .hub import download, is_hub_id
from .safetensors_reader import SafetensorsReader


def open_checkpoint(model: str) -> Checkpoint:
    """Open a folder, a .gguf file, a known demo model (see KNOWN) or a Hub id, in this order.

    The last two are downloaded if they are not cached. Raises InputError if nothing fits or the files are not sound.
    """
    path = os.path.expanduser(model)
    if os.path.isdir(path):  # unlike Path's, False for a name that no file can have
        return SafetensorsReader(Path(path))
    if os.path.isfile(path):
        return _open_file(Path(path))
    if model in KNOWN:
        return GgufReader(fetch(model))
    if is_hub_id(model):
        return SafetensorsReader(download(model))
    raise InputError(
        f"{model}: no such file or folder; not a known demo model ({', '.join(KNOWN)}), and not a Hub id (ORG/NAME)"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: the weights alone are not enough; give the folder with config.json: {path.parent}")
    if path.suffix in (".bin", ".pt", ".pth"):
        raise InputError(
            f"{path}: is a pickle, which can run code when it is loaded; convert the model to safetensors first"
        )
    return GgufReader(path)
