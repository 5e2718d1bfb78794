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
    """The ids of the golden prompts: as chats if the model has a template that takes them, else as they are."""
    plain = [tokenizer.beginning() + tokenizer.encode(prompt, special=False) for prompt in PROMPTS]
    if not (folder / "chat_template.jinja").is_file():
        return plain
    template = load_chat_template(folder)
    try:
        chats = [encode_chat(tokenizer, template, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    except InputError:  # it asks for a system message, or the like; what it can do, chat_turns.json says
        return plain
    return chats if all(chats) else plain


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
