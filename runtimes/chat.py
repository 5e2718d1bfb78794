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
from .lookup import usable
from .sampling import Sampling
from .search_chat import Search, cut_to, explain, grounded, list_of_sources, look_up
from .search_passages import Passage
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
class Prompt:
    """What is run for an answer.

    tokens    of the whole prompt
    kept      the messages it holds, the last as the user wrote it
    passages  what a search found and the model is shown
    notes     what the user must know of the search, a line each
    """

    tokens: list[int]
    kept: list[Message]
    passages: Sequence[Passage] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Chat:
    """A conversation's fixed part; what changes is in the arguments.

    ``search`` is where facts are looked up; ``lookup`` as in ``generate``.
    """

    files: ChatFiles
    session: Session
    sampling: Sampling
    max_new_tokens: int
    search: Search | None = None
    lookup: int | None = None

    def prepare(self, messages: Sequence[Message], cached: list[int]) -> Prompt:
        """The prompt for an answer to the last message, with what a search finds for it; ``cached`` as in ``generate``.

        Raises InputError as ``fit`` does; a source that fails is only noted.
        """
        if self.search is None:
            return Prompt(*self.fit(messages))
        found = look_up(self.search, messages, lambda asked, limit: self._write(asked, limit, cached))
        tokens, kept = self.fit(messages, spare=self.session.context // 4 if found.passages else 0)
        question = kept[-1]["content"]
        room = self._room() - len(tokens) - self._count(grounded("", []))
        used = cut_to(found.passages, room, self._count)
        while used:
            asked = [*kept[:-1], {"role": "user", "content": grounded(question, used)}]
            with_passages = encode_chat(self.files.tokenizer, self.files.template, asked)
            if len(with_passages) <= self._room():
                tokens = with_passages
                break
            used.pop()  # tokens of parts do not always add up
        return Prompt(tokens, kept, used, explain(found, used))

    def _count(self, text: str) -> int:
        return len(self.files.tokenizer.encode(text, special=False))

    def _room(self) -> int:
        """Tokens that a prompt may take: a quarter of the context is kept for the answer, or less if less was asked."""
        return self.session.context - min(self.max_new_tokens, self.session.context // 4)

    def _write(self, messages: Sequence[Message], limit: int, cached: list[int]) -> str:
        """What the model answers, greedily."""
        tokens, _ = self.fit(messages)
        files = self.files
        pieces = generate(
            self.session, files.tokenizer, tokens, Sampling(), limit, files.stop_tokens, cached, lookup=self.lookup
        )
        return "".join(piece.text for piece in pieces)

    def fit(self, messages: Sequence[Message], spare: int = 0) -> tuple[list[int], list[Message]]:
        """The prompt's tokens and the messages it holds: without the oldest turns where all would not fit.

        ``spare`` tokens are kept free as well. Once turns must go, they go until half of the context is free: the
        turns that follow then find their beginning in the cache. The system message stays. Raises InputError if the
        last message alone is too long.
        """
        context = self.session.context
        room = self._room() - spare
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
            self.session,
            files.tokenizer,
            tokens,
            self.sampling,
            self.max_new_tokens,
            files.stop_tokens,
            cached,
            lookup=self.lookup,
        )


def chat(
    bundle_folder: Path,
    open_session: Callable[[], Session],
    prompt: str | None = None,
    system: str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    as_json: bool = False,
    search: Search | None = None,
    lookup: int | None = None,
    output: TextIO | None = None,
    read_line: Callable[[], str] | None = None,
) -> None:
    """Answer one prompt, streamed, or without one chat until the input ends.

    The session is opened after the bundle's small files proved good. ``as_json`` writes one object instead of the
    text: {"text", "tokens", "reason" (stop, length or context), "timing"}, and with a ``search`` also "sources" and
    "notes". ``lookup`` as in ``generate``; it is left out, with a line on stderr, where guesses could change answers.
    ``output`` is stdout if not given; ``read_line`` reads the user's next line and raises EOFError at the end
    (``input`` if not given).

    Raises InputError for a bundle, a prompt or settings that cannot be used.
    """
    if as_json and prompt is None:
        raise InputError("--json answers one prompt; give it with --prompt")
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty")
    files = load_chat_files(bundle_folder)
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    session = open_session()
    lookup = usable(session, lookup, lambda line: print(line, file=sys.stderr))
    talk = Chat(files, session, sampling or Sampling(), max_new_tokens, search, lookup)
    output = output or sys.stdout
    if prompt is None:
        _loop(talk, start, output, read_line or _prompting_reader())
        return
    cached: list[int] = []
    asked = talk.prepare([*start, {"role": "user", "content": prompt}], cached)
    pieces = talk.answer(asked.tokens, cached)
    if as_json:
        found = {"sources": [asdict(entry) for entry in asked.passages], "notes": list(asked.notes)} if search else {}
        print(json.dumps(answer_to_json(pieces) | found, ensure_ascii=False), file=output)
    else:
        _show_notes(asked, output)
        _show(pieces, output, [])
        _show_sources(asked, output)


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
        prompt = talk.prepare(asked, cached)
    except InputError as error:
        print(f"({error})", file=output)
        return list(messages)
    except KeyboardInterrupt:  # a search that hangs
        print("(stopped)", file=output)
        return list(messages)
    kept = prompt.kept
    if len(kept) < len(asked):
        print(
            f"(the oldest {len(asked) - len(kept)} messages no longer fit the context and are forgotten)", file=output
        )
    _show_notes(prompt, output)
    shown: list[str] = []
    try:
        _show(talk.answer(prompt.tokens, cached), output, shown)
        _show_sources(prompt, output)
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


def _show_notes(prompt: Prompt, output: TextIO) -> None:
    for note in prompt.notes:
        print(f"({note.translate(_UNSAFE)})", file=output)


def _show_sources(prompt: Prompt, output: TextIO) -> None:
    if prompt.passages:
        print(f"\nSources:\n{list_of_sources(prompt.passages).translate(_UNSAFE)}", file=output)


def _prompting_reader() -> Callable[[], str]:
    """Python's ``input``, with line editing and a prompt on a terminal."""
    if not sys.stdin.isatty():
        return input
    with suppress(ImportError):  # importing it is what gives ``input`` line editing
        import readline  # noqa: F401
    return lambda: input("> ")
