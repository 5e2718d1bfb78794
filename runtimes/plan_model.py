"""What a plan needs to know of a model, from its configuration alone: no weight is read, nothing big is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.config import ModelConfig, find_family
from ..export.fetch import KNOWN
from ..export.gguf_reader import GgufReader
from ..export.hub import download_config, is_hub_id
from ..export.reading import read_json_object
from ..export.shapes import linear_shapes, tensor_shapes

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Bytes of tokenizer.json for each token where there is no file to look at: SmolLM2 has 32, Qwen2.5 46, Llama 3.2 71.
_TOKENIZER_BYTES = 50
_GGUF_TOKENIZER_BYTES = 32  # as export/gguf_tokenizer.py writes it
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Description:
    """A model before it is opened.

    raw              the content of config.json
    download_bytes   of its files; exact where they are there or known, else what the configuration comes to
    download_exact   which of both
    tokenizer_bytes  of the tokenizer's files
    stored_as        how matrices are stored, as far as it is known before the file is read: of a GGUF file they may be
                     integers that an export keeps, which it reads whole
    stored_biases    the linears that have a bias, where the file says it; None: as the configuration has it
    """

    raw: Mapping[str, Any]
    download_bytes: int
    download_exact: bool
    tokenizer_bytes: int
    stored_biases: frozenset[str] | None = None
    stored_as: str = "BF16"

    def biases(self, config: ModelConfig) -> frozenset[str]:
        """The linears (by the names of their weights) that have a bias."""
        if self.stored_biases is not None:
            return self.stored_biases
        names = set(find_family(self.raw).biases)
        names |= {"q_proj", "k_proj", "v_proj", "o_proj"} if self.raw.get("attention_bias") else set()
        names |= {"gate_proj", "up_proj", "down_proj"} if self.raw.get("mlp_bias") else set()
        return frozenset(name for name in linear_shapes(config) if name.split(".")[-2] in names)


def describe_model(model: str) -> Description:
    """Look at a folder, a config.json, the header of a .gguf file, a known demo model, or a Hub model's config.json.

    Raises InputError if nothing fits, as ``open_checkpoint`` does.
    """
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise InputError(f"{path}: has no config.json; give a model's folder, its config.json or a .gguf file")
        return _from_config(path / "config.json", path)
    if os.path.isfile(path):
        return _from_config(path, path.parent) if path.suffix == ".json" else _from_gguf(path)
    if model in KNOWN:
        entry = json.loads((Path(__file__).parent / "data" / "known_models.json").read_text(encoding="utf-8"))[model]
        return Description(entry["config"], entry["download_bytes"], True, entry["tokenizer_bytes"], stored_as="Q8_0")
    if is_hub_id(model):
        config = download_config(model)
        return _from_config(config, config.parent)
    raise InputError(
        f"{model}: no such file or folder; not a known demo model ({', '.join(KNOWN)}), and not a Hub id (ORG/NAME)"
    )


def _from_config(path: Path, folder: Path) -> Description:
    raw = read_json_object(path)
    tokenizer = sum((folder / name).stat().st_size for name in _TOKENIZER_FILES if (folder / name).is_file())
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    tokenizer = tokenizer or _vocabulary(raw) * _TOKENIZER_BYTES
    return Description(raw, weights + tokenizer if weights else 0, bool(weights), tokenizer)


def _from_gguf(path: Path) -> Description:
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise InputError(f"{path}: a plan is made from config.json; give the model's folder")
    reader = GgufReader(path)
    biases = (name.removesuffix("bias") + "weight" for name in reader.names() if name.endswith("_proj.bias"))
    tokenizer = _vocabulary(reader.config) * _GGUF_TOKENIZER_BYTES
    return Description(reader.config, path.stat().st_size, True, tokenizer, frozenset(biases), "Q8_0")


def _vocabulary(raw: Mapping[str, Any]) -> int:
    size = raw.get("vocab_size", 0)
    return size if isinstance(size, int) and not isinstance(size, bool) else 0


def download_bytes(description: Description, config: ModelConfig) -> int:
    """Of all files: what they are, or parameters times the bytes of the configuration's dtype."""
    if description.download_exact:
        return description.download_bytes
    dtype = str(description.raw.get("dtype") or description.raw.get("torch_dtype") or "bfloat16")
    shapes = tensor_shapes(config)
    values = sum(prod(shape) for shape in shapes.values())
    values += sum(shapes[name][0] for name in description.biases(config))
    return values * _DTYPE_BYTES.get(dtype.removeprefix("torch."), 2) + description.tokenizer_bytes
