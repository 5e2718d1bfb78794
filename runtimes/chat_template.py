"""The model's own chat template: messages to text, and to tokens in which only the template writes control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from .tokenizer import Tokenizer, check_unicode, control_pattern, read_text

Message = Mapping[str, Any]
"""One message: role, content (text), and what else its role may have (ROLES)."""

# What a message of each role may have beside role and content, with transformers' names.
ROLES: Mapping[str, tuple[str, ...]] = {
    "system": (),
    "user": (),
    "assistant": ("tool_calls",),  # [{"type": "function", "function": {"name": ..., "arguments": {...}}}, ...]
    "tool": ("name", "tool_call_id"),  # what a call gave
}
_DEEPEST = 20  # levels of a tool call's arguments

# Names under which tokenizer_config.json gives special tokens, and templates use them (transformers'
# SPECIAL_TOKENS_ATTRIBUTES).
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A template with the special tokens it writes; ``literals`` are the texts it holds itself."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile; ``special_tokens`` have transformers' names (bos_token, ...). Raises InputError for no template."""
        from .template_sandbox import SandboxedTemplate

        try:
            self._template = SandboxedTemplate(source)
        except Exception as error:  # jinja2's errors, or Python's own, for nesting it cannot compile
            raise InputError(f"the chat template cannot be read: {_one_line(error)}") from error
        self._special_tokens = dict(special_tokens)
        self.literals = (*self._template.literals, *special_tokens.values())

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        strftime_now: Callable[[str], str] | None = None,
    ) -> str:
        """The text of a conversation, as transformers' ``apply_chat_template(tokenize=False)`` writes it.

        ``strftime_now`` formats the date for templates that mention it; without one it is today's. Raises InputError
        for messages that are none, and if the template refuses them or does more work than a template should.
        """
        check_messages(messages)
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": strftime_now or _strftime_now,
        }
        try:
            return self._template.render(variables)
        except Exception as error:  # whatever a stranger's program can run into
            raise InputError(f"the chat template fails on this conversation: {_one_line(error)}") from error


def check_messages(messages: Sequence[Message]) -> None:
    """Raise InputError unless these are messages: a role that is known, text, and nothing that the role has not."""
    if not messages:
        raise InputError("there are no messages; give at least one from the user")
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise InputError(
                f"a message has a role and a content, this one has {', '.join(map(str, message)) or 'none'}"
            )
        role = message["role"]
        if role not in ROLES:
            raise InputError(f"the role {role!r} is unknown; there are {', '.join(ROLES)}")
        strange = [key for key in message if key not in ("role", "content", *ROLES[role])]
        if strange:
            raise InputError(f"a message of the role {role} has no {strange[0]!r}")
        if not isinstance(message["content"], str):
            raise InputError(f"the content of a message must be text, it is {type(message['content']).__name__}")
        for text in _texts(message):
            check_unicode(text)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Every text in a message; raises InputError for what JSON cannot hold, and for what is nested too deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list) and depth < _DEEPEST:
        for part in [*value, *value.values()] if isinstance(value, Mapping) else value:
            yield from _texts(part, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise InputError(f"a message may hold text, numbers, lists and objects, at most {_DEEPEST} deep")


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value with every text in it changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _map_texts(part, change) for name, part in value.items()}
    return [_map_texts(part, change) for part in value] if isinstance(value, list) else value


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> list[int]:
    """The tokens of a conversation: control tokens where the template writes them, and nowhere else.

    Without control tokens in the messages this is the plain encoding of the rendered text, in one call:
    text is never cut where a message begins, because its tokens may reach over that border. With some, each is marked
    in the messages before the template sees them (with characters that occur nowhere in the conversation), and in
    the rendered text those without a mark are the template's. The idea is transformers' (sanitize_control_tokens);
    there the text is cut around them, here a twin of the tokenizer takes it whole.

    Raises InputError as ``ChatTemplate.render`` does.
    """
    check_messages(messages)
    control = control_tokens(tokenizer, template)
    pattern = control_pattern(control)
    if not any(pattern.search(text) for message in messages for text in _texts(message)):
        rendered = template.render(messages, add_generation_prompt=add_generation_prompt)
        return tokenizer.encode(rendered, special=True)
    start, end = _unused_characters("".join(text for message in messages for text in _texts(message)))

    def mark(text: str) -> str:
        return pattern.sub(lambda found: start + found[0] + end, text)

    marked = [{key: _map_texts(value, mark) for key, value in message.items()} for message in messages]
    rendered = template.render(marked, add_generation_prompt=add_generation_prompt)
    twin = tokenizer.twin(control)
    # A template that cuts text apart can leave a lone mark: it is dropped.
    parts = re.compile(f"{start}({pattern.pattern}){end}|[{start}{end}]|({pattern.pattern})")
    return twin.encode(parts.sub(lambda found: found[1] or twin.aliases.get(found[2] or "", ""), rendered))


def control_tokens(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[str, ...]:
    """Special tokens, and other added tokens that the template writes (<think>, <tool_call>); but not white space,
    which some vocabularies have as added tokens and every template as ordinary text."""
    written = "\0".join(template.literals)
    special = set(tokenizer.special_tokens)
    return tuple(
        token for token in tokenizer.added_tokens if token in special or (token in written and not token.isspace())
    )


def _unused_characters(text: str) -> tuple[str, str]:
    """Two private-use characters that the text does not have."""
    unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
    return next(unused), next(unused)


def load_chat_template(folder: Path) -> ChatTemplate:
    """The template of a bundle: chat_template.jinja, with the special tokens that tokenizer_config.json names.

    Raises InputError if the bundle has no template or one that cannot be read.
    """
    path = folder / "chat_template.jinja"
    if not path.is_file():
        raise InputError(f"{folder} has no chat_template.jinja: this model was not tuned for chat; use one that was")
    settings = load_json(folder / "tokenizer_config.json")
    names = {name: _token_text(settings.get(name)) for name in _TOKEN_NAMES}
    return ChatTemplate(read_text(path), {name: text for name, text in names.items() if text is not None})


def _token_text(entry: Any) -> str | None:
    """A special token in tokenizer_config.json: its text, or an object that holds it."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) else None


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a bundle; raises InputError if there is none."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; export the model again")
    return content


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
