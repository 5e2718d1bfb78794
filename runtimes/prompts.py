"""The golden prompts as tokens, and the tokens that end an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .golden import PROMPTS
from .tokenizer import Tokenizer


def encode_prompts(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The texts of the golden prompts and their ids: as chats if the model has a template, else as they are."""
    template = files.get("chat_template.jinja")
    if template is None:
        return PROMPTS, [tokenizer.encode(prompt, special=False) for prompt in PROMPTS]
    raise NotImplementedError


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
