"""What OpenAI's completion requests ask for, checked: unknown values are refused, never ignored in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .chat_template import ROLES, Message
from .plain_text import plain
from .sampling import Sampling

MOST_LOGPROBS = 20
MOST_PROMPTS = 64
_MOST_STOPS = 4
_LONGEST_SHOWN = 100  # characters of a parameter's name

_COMMON = frozenset(
    {
        "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "stream",
        "stream_options", "n", "user", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "metadata",
        "store",
    }
)  # fmt: skip
_COMPLETION = _COMMON | {"prompt", "echo", "best_of", "suffix"}
_CHAT = _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice"}
# Parameters that would change the answer, with the values that leave it as it is.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "suffix": (None, ""),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
}


@dataclass(frozen=True)
class Asked:
    """One request.

    prompts         of a completion: texts or token ids; empty for a chat
    messages        of a chat
    max_new_tokens  None is as many as fit
    logprobs        how many alternatives are wanted beside each token's own log-probability; None is none of it
    """

    prompts: tuple[str | tuple[int, ...], ...]
    messages: tuple[Message, ...]
    sampling: Sampling
    max_new_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    echo: bool
    logprobs: int | None


def parse_completion(body: Any) -> Asked:
    """The body of /v1/completions; raises InputError naming the parameter that cannot be used."""
    fields = _fields(body, _COMPLETION)
    logprobs = fields.get("logprobs")
    if logprobs is not None:
        logprobs = _whole(fields, "logprobs", 0, MOST_LOGPROBS)
    return _asked(
        fields,
        prompts=_prompts(fields.get("prompt", "")),
        messages=(),
        max_new_tokens=16 if fields.get("max_tokens") is None else _whole(fields, "max_tokens", 0),
        echo=_flag(fields, "echo"),
        logprobs=logprobs,
    )


def parse_chat(body: Any) -> Asked:
    """The body of /v1/chat/completions; raises InputError naming the parameter that cannot be used."""
    fields = _fields(body, _CHAT)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with one message at least")
    limit = next((key for key in ("max_completion_tokens", "max_tokens") if fields.get(key) is not None), None)
    wanted = _flag(fields, "logprobs")
    if fields.get("top_logprobs") is not None and not wanted:
        raise InputError("top_logprobs needs logprobs = true")
    return _asked(
        fields,
        prompts=(),
        messages=tuple(map(_message, messages)),
        max_new_tokens=None if limit is None else _whole(fields, limit, 1),
        echo=False,
        logprobs=_whole({"top_logprobs": fields.get("top_logprobs") or 0}, "top_logprobs", 0, MOST_LOGPROBS)
        if wanted
        else None,
    )


def _fields(body: Any, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    unknown = sorted(set(body) - known)
    if unknown:
        raise InputError(f"{plain(unknown[0], _LONGEST_SHOWN)} is not supported")
    for key, allowed in _WITHOUT_EFFECT.items():
        if key in body and body[key] not in allowed:
            raise InputError(f"{key} = {body[key]!r} is not supported")
    return body


def _asked(fields: Mapping[str, Any], **rest: Any) -> Asked:
    options = fields.get("stream_options") or {}
    return Asked(
        sampling=_sampling(fields),
        stop=_stops(fields.get("stop")),
        stream=_flag(fields, "stream"),
        usage_in_stream=isinstance(options, Mapping) and options.get("include_usage") is True,
        **rest,
    )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    """OpenAI's defaults: temperature 1, no cut. Without a seed the answer is another one each time there."""
    given = {
        "temperature": _number(fields, "temperature", 1.0),
        "top_p": _number(fields, "top_p", 1.0),
        "min_p": _number(fields, "min_p", 0.0),
        "repetition_penalty": _number(fields, "repetition_penalty", 1.0),
    }
    top_k = 0 if fields.get("top_k") in (None, -1) else _whole(fields, "top_k", 0)
    seed = 0 if fields.get("seed") is None else _whole(fields, "seed", -(2**63)) % 2**64
    return Sampling(top_k=top_k, seed=seed, **given)


def _prompts(given: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, several, token ids, or several lists of them."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        raise InputError("prompt must be text, a list of texts, token ids, or a list of lists of token ids")
    if all(map(_is_id, given)):
        return (tuple(given),)
    if len(given) > MOST_PROMPTS:
        raise InputError(f"prompt has {len(given)} entries; at most {MOST_PROMPTS} are taken at once")
    return tuple(_prompt(entry) for entry in given)


def _prompt(entry: Any) -> str | tuple[int, ...]:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and entry and all(map(_is_id, entry)):
        return tuple(entry)
    raise InputError("prompt must be text, a list of texts, token ids, or a list of lists of token ids")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _message(given: Any) -> Message:
    """One message; content may be OpenAI's list of parts, if all of them are text, and null beside tool calls."""
    if not isinstance(given, Mapping):
        raise InputError("each of messages must be an object with role and content")
    role = "system" if given.get("role") == "developer" else given.get("role")
    content = given.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise InputError("content may hold text only")
        content = "".join(part for part in parts if part is not None)
    if content is None and given.get("tool_calls"):
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError("each of messages must be an object with role and content, both text")
    more = {key: given[key] for key in ROLES.get(role, ()) if given.get(key) is not None}
    if "tool_calls" in more:
        more["tool_calls"] = _tool_calls(more["tool_calls"])
    return {"role": role, "content": content} | more


def _tool_calls(given: Any) -> list[Any]:
    """Calls with their arguments as objects, which templates want; OpenAI's clients send them as JSON in a text."""
    if not isinstance(given, list) or not all(isinstance(call, Mapping) for call in given):
        raise InputError("tool_calls must be a list of objects")
    calls = []
    for call in given:
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError("each of tool_calls must have a function with a name")
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, Mapping):
            raise InputError(f"the arguments of the tool call {function['name']!r} must be an object in JSON")
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _stops(given: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = () if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InputError("stop must be text or a list of texts, none of them empty")
    if len(stops) > _MOST_STOPS:
        raise InputError(f"stop takes at most {_MOST_STOPS} texts, there are {len(stops)}")
    return tuple(stops)


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key)
    if value not in (None, True, False) or (isinstance(value, int) and not isinstance(value, bool)):
        raise InputError(f"{key} must be true or false, it is {value!r}")
    return bool(value)


def _number(fields: Mapping[str, Any], key: str, default: float) -> float:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{key} must be a number, it is {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{key} is too large") from error


def _whole(fields: Mapping[str, Any], key: str, least: int, most: int = 2**64) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(
            f"{key} must be a whole number from {least}{f' to {most}' if most < 2**63 else ''}, it is {value!r}"
        )
    return value
