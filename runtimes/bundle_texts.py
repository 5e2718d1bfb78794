"""The texts of a bundle: tokenizer, template, the template taken apart for apps, what onnxruntime-genai reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..export.config import ModelConfig
from ..export.genai_config import genai_config_bytes
from .chat_template import control_tokens, load_chat_template
from .chat_turns import chat_turns
from .tokenizer import load_tokenizer
from .tokenizer_check import check_tokenizer


def write_texts(files: Mapping[str, bytes], folder: Path) -> tuple[str, ...]:
    """Tokenizer, template, and the template taken apart for apps without Jinja; what could not be done, and why."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if "chat_template.jinja" not in files:
        return ("no chat_turns.json: the model has no chat template",)
    template = load_chat_template(folder)
    turns, reason = chat_turns(template.render)
    if turns is None:
        return (f"no chat_turns.json: {reason}",)
    turns["control"] = list(control_tokens(load_tokenizer(folder), template))
    (folder / "chat_turns.json").write_text(json.dumps(turns, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return ()


def check_texts(folder: Path) -> tuple[str, ...]:
    """Hold a bundle's tokenizer and template to others; remarks for the reader of the certificate."""
    template = load_chat_template(folder) if (folder / "chat_template.jinja").is_file() else None
    return check_tokenizer(folder, load_tokenizer(folder), template)


def write_genai_files(
    folder: Path, config: ModelConfig, context: int, stop_tokens: Sequence[int], raw: Mapping[str, Any]
) -> None:
    """onnxruntime-genai wants its configuration and the tokenizer in the folder of the model.

    Not for a model whose layers have caches of different shapes (OpenELM): such a one it cannot run.

    raw  the model's config.json
    """
    if len({(layer.attention.kv_heads, layer.attention.head_dim) for layer in config.layers}) > 1:
        return  # it has no way to say that layers' caches differ
    (folder / "onnx" / "genai_config.json").write_bytes(genai_config_bytes(config, context, stop_tokens, raw))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, folder / "onnx" / name)
