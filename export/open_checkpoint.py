"""From what a user names a model by to the reader of its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .adapters import merge_adapters
from .checkpoint import Checkpoint
from .config import parse_config
from .fetch import KNOWN, fetch
from .gguf_reader import GgufReader
from .hub import download, is_hub_id
from .layouts import normalise
from .safetensors_reader import SafetensorsReader


def open_checkpoint(model: str, adapters: Sequence[str] = ()) -> Checkpoint:
    """Open a folder, a .gguf file, a known demo model (see KNOWN) or a Hub id, in this order.

    ``adapters`` are folders of LoRA adapters, ``DIR`` or ``DIR=WEIGHT``, which are merged in.

    The last two are downloaded if they are not cached. Raises InputError if nothing fits or the files are not sound.
    """
    base = _open(model)
    reader = merge_adapters(base, adapters) if adapters else base
    return normalise(reader, parse_config(reader.config)) if isinstance(base, SafetensorsReader) else reader


def _open(model: str) -> Checkpoint:
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
