"""Answers in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .serve_engine import Part, TokenScore
from .tokenizer import Tokenizer


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; its id where that is a part of a character or a control token, so that none are confused."""
    text = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else f"token_id:{token}"


def usage(parts: Sequence[Part]) -> dict[str, int]:
    """Tokens of prompts and answers, over the last parts of several answers."""
    prompt, new = sum(part.prompt_tokens for part in parts), sum(part.new_tokens for part in parts)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def completion_logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore], offset: int = 0) -> dict[str, Any]:
    """``logprobs`` of a completion. A token that was not among the likeliest is listed with them, as OpenAI does."""
    texts = [token_text(tokenizer, entry.token) for entry in scores]
    offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in scores],
        "top_logprobs": [_top(tokenizer, entry) for entry in scores],
        "text_offset": offsets,
    }


def _top(tokenizer: Tokenizer, entry: TokenScore) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    listed = {token_text(tokenizer, token): logprob for token, logprob in entry.likeliest}
    return listed | {token_text(tokenizer, entry.token): entry.logprob}


def chat_logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a chat."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            one(entry.token, entry.logprob)
            | {"top_logprobs": [one(token, logprob) for token, logprob in entry.likeliest]}
            for entry in scores
        ],
        "refusal": None,
    }


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as the clients of OpenAI read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
