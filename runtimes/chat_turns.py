"""A chat template taken apart into literal pieces, so that an app needs no Jinja: the content of chat_turns.json.

    {
      "schema": 1,
      "between": {                        what the template writes between two contents, or at an end:
        "start user": PIECE,              in front of a first user message, with the default system prompt, if any
        "start system": PIECE,            in front of a system message; absent where the template takes none
        "system user": PIECE,             between the contents of a system message and the user's
        "user assistant": PIECE,
        "assistant user": PIECE,
        "user generate": PIECE            behind the last user message: the model writes on from here
      },
      "default_system": "..." or null,    the system prompt that "start user" contains; for display
      "system_reason": "..." or null,     why there is no "start system"
      "cut": {"behind": "</think>", "trim_left": "\\n"} or null,
                                          of an assistant's content: what stands behind the last such text is kept,
                                          without these characters at its start; without the text all is kept
      "control": ["<|im_start|>", ...]    tokens that count in pieces and are plain text in contents; added at export,
                                          which knows the tokenizer; other added tokens count everywhere
      "dates": ["%d %b %Y", ...]          patterns (strftime's) of dates within the pieces, which are written as U+E000,
                                          pattern, U+E000; only %d %m %y %Y %b %B %a %A occur, with English names
    }
    PIECE = {"trim_before": "...",        characters to remove from the end of the content in front, after "cut"
             "text": "...",
             "trim_after": "..."}         characters to remove from the start of the content behind, after "cut"

Pieces by pairs of roles, not before and after each role: Llama 2 and Gemma write the system message inside the user's
turn, so that what stands before a user's content depends on what came before. The conversation is
[system] user (assistant user)*, and no content is empty or white space alone: an app leaves out an empty system prompt,
and a turn that got no answer. Control tokens count only in pieces, never in contents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product, takewhile
from typing import Any, Protocol

from ..errors import InputError
from .chat_template import Message

SCHEMA = 1
_DATE_MARK = "\ue000"
_WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # what str.strip removes
_TRIMS = ("", "\n", _WHITE_SPACE)
_DATES = (datetime(2024, 2, 29), datetime(2031, 11, 5))
_THINKING_END = "</think>"  # Qwen 3, DeepSeek R1, SmolLM 3: earlier turns are shown without their reasoning


class Render(Protocol):
    """``ChatTemplate.render``."""

    def __call__(self, messages: Sequence[Message], /, *, strftime_now: Callable[[str], str] | None = None) -> str:
        """The template's text with the generation prompt."""
        ...


class _InseparableError(Exception):
    """Why a template cannot be taken apart."""


def chat_turns(render: Render) -> tuple[dict[str, Any] | None, str]:
    """Take a template apart and prove the pieces; (content of chat_turns.json, ""), or (None, the reason).

    The pieces are read off renderings of contents that can be recognised, and then must give the same text as the
    template for the conversations of ``proof_conversations``, on two dates.
    """
    try:
        turns = _pieces_without_system(render)
        _add_system(turns, render)
        _find_cut(turns, render)
        _prove(turns, render)
    except (_InseparableError, InputError) as error:
        return None, str(error)
    return turns, ""


def assemble(turns: Mapping[str, Any], messages: Sequence[Message], now: datetime | None = None) -> str:
    """The text of a conversation with its generation prompt: what the template would write.

    The reference for apps. Raises InputError for a conversation that the pieces do not cover.
    """
    return "".join(text for text, _ in segments(turns, messages, now))


def segments(
    turns: Mapping[str, Any], messages: Sequence[Message], now: datetime | None = None
) -> Iterator[tuple[str, bool]]:
    """The text in parts: (text, whether the template wrote it and control tokens count in it)."""
    previous, content = "start", ""
    for role, following in [*_contents(turns, messages), ("generate", "")]:
        piece = _piece(turns, previous, role)
        if previous != "start":
            yield content.rstrip(piece["trim_before"]), False
        yield _with_dates(turns, piece["text"], now), True
        previous, content = role, following.lstrip(piece["trim_after"])


def proof_conversations(system: bool) -> Iterator[list[Message]]:
    """Conversations with everything that templates are known to treat differently, with or without a system message."""
    brief: list[Message] = [{"role": "system", "content": "Be brief."}] if system else []
    for i, content in enumerate(_ODD_CONTENTS):
        start: list[Message] = [{"role": "system", "content": _ODD_CONTENTS[i - 1]}] if system else []
        yield [*start, *_talk(content)]
        yield [*brief, *_talk(content, _ODD_CONTENTS[i - 2], _ODD_CONTENTS[i - 3])]
    for answer in _ODD_ANSWERS:
        yield [*brief, *_talk("first", answer, "second", answer, "third")]
    yield [*brief, *_talk(*_ODD_ANSWERS, *_ODD_CONTENTS)]


_ODD_CONTENTS = (
    "Hello", "  two spaces before, one behind ", "\n\nlines\n\nand lines\n", "\u2003wide\u00a0", "\x1c\tcontrol\x0b",
    "{{ braces }} {% if %} {# #}", "<b>&amp;\"quoted\" 'text'</b> \\n", "naïve 😀👩‍👩‍👧 日本語 \u0301", "[]", "0",
    "None", "<|im_end|> </s> [INST] <<SYS>> <end_of_turn> <|eot_id|>", "word " * 300,
)  # fmt: skip
_ODD_ANSWERS = (
    f"<think>\nplan\n{_THINKING_END}\n\n answer", f"a{_THINKING_END}b{_THINKING_END}\tc\n", "<think>\nno end", "plain",
)  # fmt: skip


def _talk(*contents: str) -> Iterator[Message]:
    """Messages of user and assistant in turn."""
    for i, content in enumerate(contents):
        yield {"role": ("user", "assistant")[i % 2], "content": content}


def _pieces_without_system(render: Render) -> dict[str, Any]:
    dates: list[str] = []
    pieces = _pieces(render, ["user", "assistant", "user"], dates)
    return {
        "schema": SCHEMA,
        "between": dict(zip(("start user", "user assistant", "assistant user", "user generate"), pieces, strict=True)),
        "default_system": None,
        "system_reason": None,
        "cut": None,
        "dates": dates,
    }


def _add_system(turns: dict[str, Any], render: Render) -> None:
    """The pieces around a system message, unless the template takes none or does something of its own with it."""
    between = turns["between"]
    try:
        before, behind, *rest = _pieces(render, ["system", "user", "assistant", "user"], turns["dates"])
        if rest != [between["user assistant"], between["assistant user"], between["user generate"]]:
            raise _InseparableError("a system message changes what the template writes later")
    except (_InseparableError, InputError) as error:
        turns["system_reason"] = str(error)
        return
    between |= {"start system": before, "system user": behind}
    first, opening, closing = (piece["text"] for piece in (between["start user"], before, behind))
    if len(first) > len(opening) + len(closing) and first.startswith(opening) and first.endswith(closing):
        turns["default_system"] = first[len(opening) : len(first) - len(closing)]


_PADDING = ("\n \u00a0", "\u00a0 \n")


def _pieces(render: Render, roles: Sequence[str], dates: list[str]) -> list[dict[str, str]]:
    """The pieces around messages of these roles; ``dates`` gets the patterns of dates that are seen."""
    plain, padded = _split(render, roles, dates, ("", "")), _split(render, roles, dates, _PADDING)
    pieces = []
    for i, (text, found) in enumerate(zip(plain, padded, strict=True)):
        end, start = _PADDING[1] if i else "", _PADDING[0] if i < len(roles) else ""
        for before, after in product(_TRIMS, _TRIMS):
            if end.rstrip(before) + text + start.lstrip(after) == found:
                pieces.append({"trim_before": before, "text": text, "trim_after": after})
                break
        else:
            raise _InseparableError("the template treats white space around a message in a way of its own")
    return pieces


def _split(render: Render, roles: Sequence[str], dates: list[str], padding: tuple[str, str]) -> list[str]:
    """Render contents that can be recognised, with ``padding`` around them; what stands before, between and behind."""
    cores = [f"Q{i}content{i}Q" for i in range(len(roles))]
    messages = [
        {"role": role, "content": padding[0] + core + padding[1]} for role, core in zip(roles, cores, strict=True)
    ]

    def marked_date(pattern: str) -> str:
        if set(re.findall("%.?", pattern)) - {"%d", "%m", "%y", "%Y", "%b", "%B", "%a", "%A"}:
            raise InputError(f"it writes the time as {pattern!r}")
        if pattern not in dates:
            dates.append(pattern)
        return _DATE_MARK + pattern + _DATE_MARK

    rest, found = render(messages, strftime_now=marked_date), []
    for core in cores:
        piece, core_found, rest = rest.partition(core)
        if not core_found or core in rest:
            raise _InseparableError(f"the template does not write each message once and in order ({', '.join(roles)})")
        found.append(piece)
    return [*found, rest]


def _find_cut(turns: dict[str, Any], render: Render) -> None:
    """Find what the template cuts from answers with reasoning."""
    probe = [*_talk("first", f"<think>\nplan\n{_THINKING_END}\n \nx", "second")]
    expected = render(probe, strftime_now=_DATES[0].strftime)
    for turns["cut"] in (None, *({"behind": _THINKING_END, "trim_left": left} for left in _TRIMS)):
        if assemble(turns, probe, _DATES[0]) == expected:
            return
    turns["cut"] = None  # the proof will say what differs


def _prove(turns: Mapping[str, Any], render: Render) -> None:
    """Raise unless the pieces give the template's text for every conversation of the proof."""
    kinds = (False, True) if "start system" in turns["between"] else (False,)
    for now, system in product(_DATES, kinds):
        for messages in proof_conversations(system):
            expected = render(messages, strftime_now=now.strftime)
            found = assemble(turns, messages, now)
            if found != expected:
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False)))
                start = max(same - 20, 0)
                raise _InseparableError(
                    "what the template writes depends on more than neighbouring roles: in a conversation of "
                    f"{len(messages)} messages it writes {expected[start : start + 60]!r}"
                    f" where the pieces give {found[start : start + 60]!r}"
                )


def _piece(turns: Mapping[str, Any], previous: str, role: str) -> dict[str, str]:
    piece: dict[str, str] | None = turns["between"].get(f"{previous} {role}")
    if piece is None and (previous, role) == ("start", "system"):
        raise InputError(f"this model takes no system message: {turns['system_reason']}")
    if piece is None:
        raise InputError(f"{role} cannot follow {previous}: a conversation is [system] user (assistant user)*")
    return piece


def _with_dates(turns: Mapping[str, Any], text: str, now: datetime | None) -> str:
    for pattern in turns["dates"]:
        text = text.replace(_DATE_MARK + pattern + _DATE_MARK, (now or datetime.now()).strftime(pattern))
    return text


def _contents(turns: Mapping[str, Any], messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Role and content of each message, without what the template cuts."""
    cut = turns["cut"]
    for message in messages:
        role, content = message["role"], message["content"]
        if not content.strip(_WHITE_SPACE):
            raise InputError(f"a message of the {role} is empty; leave it out")
        if role == "assistant" and cut and cut["behind"] in content:
            content = content.rpartition(cut["behind"])[2].lstrip(cut["trim_left"])
        yield role, content
