"""The golden prompts as tokens, and the tokens that end an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .chat_template import encode_chat, load_chat_template
from .golden import PROMPTS
from .tokenizer import Tokenizer


def encode_prompts(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of the golden prompts: as chats if the model has a template, else as they are."""
    if not (folder / "chat_template.jinja").is_file():
        return [tokenizer.beginning() + tokenizer.encode(prompt, special=False) for prompt in PROMPTS]
    template = load_chat_template(folder)
    return [encode_chat(tokenizer, template, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]


def stop_tokens(files: Mapping[str, bytes], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer, from generation_config.json or config.json.

    Raises InputError if neither names one: the model would never stop.
    """
    generation = json.loads(files.get("generation_config.json", b"{}"))
    for source in (generation, config):
        given = source.get("eos_token_id")
        ids = given if isinstance(given, list) else [given]
        if ids and all(isinstance(token, int) for token in ids):
            return tuple(ids)
    raise InputError("the model names no eos_token_id; add it to generation_config.json, or it will never stop")
