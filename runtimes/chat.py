"""Chat with a bundle in a terminal, or answer one prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from .chat_template import ChatTemplate, Message, encode_chat, load_chat_template, load_json
from .generate import CONTEXT, LENGTH, Piece, generate
from .sampling import Sampling
from .session import Session
from .tokenizer import Tokenizer, load_tokenizer

DEFAULT_MAX_NEW_TOKENS = 512

_HELP = "Type a message. /reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer."
# A model can be made to write terminal control sequences: show them, do not obey them.
_UNSAFE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"} | {ord("\r"): ""}


@dataclass(frozen=True)
class ChatFiles:
    """What a bundle holds for chatting besides the model."""

    tokenizer: Tokenizer
    template: ChatTemplate
    stop_tokens: frozenset[int]


def load_chat_files(folder: Path) -> ChatFiles:
    """Read a bundle's tokenizer, template and stop tokens; raises InputError for what is missing or broken."""
    return ChatFiles(load_tokenizer(folder), load_chat_template(folder), load_stop_tokens(folder))


def load_stop_tokens(folder: Path) -> frozenset[int]:
    """eos_token_id of generation_config.json: one id or a list."""
    path = folder / "generation_config.json"
    given: Any = load_json(path).get("eos_token_id")
    tokens = given if isinstance(given, list) else [given]
    if not tokens or not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise InputError(f"{path}: eos_token_id must be a token id or a list of them, it is {given!r}")
    return frozenset(tokens)


@dataclass(frozen=True)
class Chat:
    """A conversation's fixed part; what changes is in the arguments."""

    files: ChatFiles
    session: Session
    sampling: Sampling
    max_new_tokens: int

    def fit(self, messages: Sequence[Message]) -> tuple[list[int], list[Message]]:
        """The prompt's tokens and the messages it holds: without the oldest turns where all would not fit.

        A quarter of the context is kept for the answer, or as much as was asked for if that is less. Once turns must
        go, they go until half of the context is free: the turns that follow then find their beginning in the cache.
        The system message stays. Raises InputError if the last message alone is too long.
        """
        context = self.session.context
        room = context - min(self.max_new_tokens, context // 4)
        kept = list(messages)
        while True:
            tokens = encode_chat(self.files.tokenizer, self.files.template, kept)
            if len(tokens) <= room:
                return tokens, kept
            first = 1 if kept[0]["role"] == "system" else 0
            if len(kept) - first >= 3:
                del kept[first : first + 2]
                room = min(room, context // 2)
            elif len(tokens) <= context:
                return tokens, kept
            else:
                raise InputError(
                    f"the message takes {len(tokens)} tokens and the context holds {context}; "
                    "shorten it or export with a larger --context"
                )

    def answer(self, tokens: Sequence[int], cached: list[int]) -> Iterator[Piece]:
        """Stream the answer to a prompt; ``cached`` as in ``generate``."""
        files = self.files
        return generate(
            self.session, files.tokenizer, tokens, self.sampling, self.max_new_tokens, files.stop_tokens, cached
        )


def chat(
    bundle_folder: Path,
    open_session: Callable[[], Session],
    prompt: str | None = None,
    system: str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    as_json: bool = False,
    output: TextIO | None = None,
    read_line: Callable[[], str] | None = None,
) -> None:
    """Answer one prompt, streamed, or without one chat until the input ends.

    The session is opened after the bundle's small files proved good. ``as_json`` writes one object instead of the
    text: {"text", "tokens", "reason" (stop, length or context), "timing"}. ``output`` is stdout if not given;
    ``read_line`` reads the user's next line and raises EOFError at the end (``input`` if not given).

    Raises InputError for a bundle, a prompt or settings that cannot be used.
    """
    if as_json and prompt is None:
        raise InputError("--json answers one prompt; give it with --prompt")
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty")
    files = load_chat_files(bundle_folder)
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    talk = Chat(files, open_session(), sampling or Sampling(), max_new_tokens)
    output = output or sys.stdout
    if prompt is None:
        _loop(talk, start, output, read_line or _prompting_reader())
        return
    tokens, _ = talk.fit([*start, {"role": "user", "content": prompt}])
    pieces = talk.answer(tokens, [])
    if as_json:
        print(json.dumps(answer_to_json(pieces), ensure_ascii=False), file=output)
    else:
        _show(pieces, output, [])


def answer_to_json(pieces: Iterable[Piece]) -> dict[str, Any]:
    """An answer as one JSON object."""
    whole = list(pieces)
    timing = whole[-1].timing
    assert timing is not None, "the last piece has the timing"
    return {
        "text": "".join(piece.text for piece in whole),
        "tokens": [piece.token for piece in whole if piece.token is not None],
        "reason": whole[-1].reason,
        "timing": asdict(timing),
    }


def _loop(talk: Chat, start: Sequence[Message], output: TextIO, read_line: Callable[[], str]) -> None:
    """Read a message, stream the answer, until the input ends."""
    print(_HELP, file=output)
    messages, cached = list(start), list[int]()
    while (line := _next_line(output, read_line)) is not None:
        command = line.strip()
        if command == "/quit":
            return
        if command == "/reset":
            messages = list(start)
            print("The conversation is forgotten.", file=output)
        elif command.startswith("/"):
            print(f"{command.split()[0]} is unknown. {_HELP}", file=output)
        elif command:
            messages = _turn(talk, messages, line, cached, output)


def _next_line(output: TextIO, read_line: Callable[[], str]) -> str | None:
    """The next line; None at the end. Ctrl-C only drops the line."""
    while True:
        try:
            return read_line()
        except EOFError:
            print(file=output)
            return None
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends the chat)", file=output)


def _turn(talk: Chat, messages: Sequence[Message], line: str, cached: list[int], output: TextIO) -> list[Message]:
    """One question and its answer; the conversation after it."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        tokens, kept = talk.fit(asked)
    except InputError as error:
        print(f"({error})", file=output)
        return list(messages)
    if len(kept) < len(asked):
        print(
            f"(the oldest {len(asked) - len(kept)} messages no longer fit the context and are forgotten)", file=output
        )
    shown: list[str] = []
    try:
        _show(talk.answer(tokens, cached), output, shown)
    except KeyboardInterrupt:
        print(" (stopped)", file=output)
    text = "".join(shown)
    # Templates differ in what they make of an empty answer: a turn without one is as if it had not been.
    return [*kept, {"role": "assistant", "content": text}] if text.strip() else kept[:-1]


def _show(pieces: Iterable[Piece], output: TextIO, shown: list[str]) -> None:
    """Write an answer as it comes; ``shown`` gets its parts, so that they survive an interruption."""
    reason = None
    for piece in pieces:
        shown.append(piece.text)
        output.write(piece.text.translate(_UNSAFE))
        output.flush()
        reason = piece.reason
    notes = {LENGTH: " (cut: the limit of new tokens is reached)", CONTEXT: " (cut: the context is full)"}
    print(notes.get(reason or "", ""), file=output)


def _prompting_reader() -> Callable[[], str]:
    """Python's ``input``, with line editing and a prompt on a terminal."""
    if not sys.stdin.isatty():
        return input
    with suppress(ImportError):  # importing it is what gives ``input`` line editing
        import readline  # noqa: F401
    return lambda: input("> ")
