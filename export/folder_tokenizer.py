"""The tokenizer files of a model folder, as they are, completed where older folders keep things elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .reading import json_bytes, read_json_object
from .sentencepiece_model import convert_sentencepiece

_GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_tokenizer_files(folder: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Content by file name: tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja.

    The chat template is left out if the model has none. Where there is no tokenizer.json, it is made from
    SentencePiece's tokenizer.model, which is then among the files too. Raises InputError if there is neither, a file
    is not valid, or the tokenizer needs code of its own.
    """
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        read_json_object(folder / "tokenizer.json")  # for its errors
        files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    elif (folder / "tokenizer.model").is_file():
        content, settings = convert_sentencepiece(folder, settings)
        files = {"tokenizer.json": content.encode(), "tokenizer.model": (folder / "tokenizer.model").read_bytes()}
    else:
        raise InputError(
            f"{folder}: has neither tokenizer.json nor tokenizer.model; write one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    files["tokenizer_config.json"] = json_bytes(settings)
    template = _chat_template(folder, settings)
    if template is not None:
        files["chat_template.jinja"] = template
    if (folder / "generation_config.json").is_file():
        generation = read_json_object(folder / "generation_config.json")
    else:
        generation = {key: config[key] for key in _GENERATION_KEYS if config.get(key) is not None}
    files["generation_config.json"] = json_bytes(generation)
    return files


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    if "auto_map" in settings:
        raise InputError(
            f"{path}: auto_map asks for code that comes with the model, which pocketlm never runs; "
            "use a model whose tokenizer is all in tokenizer.json"
        )
    return settings


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> bytes | None:
    """From its own file or, in older folders, from the settings, where several may have names."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_bytes()
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template.encode() if isinstance(template, str) else None
