"""One generation at a time: the queue in front of a session, and what a generation gives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chat import ChatFiles
from .chat_template import encode_chat
from .generate import LENGTH, STOP, generate
from .metrics import log_softmax
from .serve_request import Asked
from .session import Session


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability (None for the first of a prompt: nothing was before it) and the likeliest."""

    token: int
    logprob: float | None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Part:
    """A part of an answer; the last one has the reason (``stop`` or ``length``) and the counts of tokens."""

    text: str
    scores: tuple[TokenScore, ...] = ()
    reason: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass
class StopText:
    """Cuts a stream of text at the first of some strings, and holds back what may be the beginning of one."""

    stops: Sequence[str]
    held: str = ""
    hit: bool = False

    def add(self, text: str) -> str:
        """The text that can be shown."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            shown, self.held, self.hit = self.held[: min(places)], "", True
            return shown
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def _overlap(self, stop: str) -> int:
        """How many characters at the end are the beginning of ``stop``."""
        sizes = range(min(len(stop) - 1, len(self.held)), 0, -1)
        return next((size for size in sizes if self.held.endswith(stop[:size])), 0)


def score(token: int, logits: NDArray[np.float32], alternatives: int) -> TokenScore:
    """A token's log-probability under these logits (vocab_size,), and the likeliest tokens'."""
    logprobs = log_softmax(logits.astype(np.float64))
    ids = np.argsort(-logprobs, kind="stable")[:alternatives].tolist()
    return TokenScore(token, float(logprobs[token]), tuple((index, float(logprobs[index])) for index in ids))


def prompt_tokens(files: ChatFiles, asked: Asked, prompt: str | tuple[int, ...] | None) -> list[int]:
    """The tokens to run: of a chat by its template, of a text with what the tokenizer puts in front of one."""
    if prompt is None:
        return encode_chat(files.tokenizer, files.template, asked.messages)
    if isinstance(prompt, tuple):
        return list(prompt)
    return files.tokenizer.beginning() + files.tokenizer.encode(prompt, special=True)


def answer(
    session: Session,
    files: ChatFiles,
    asked: Asked,
    tokens: Sequence[int],
    cached: list[int],
    lookup: int | None = None,
) -> Iterator[Part]:
    """Generate for one prompt; ``cached`` and ``lookup`` as in ``generate``."""
    if not tokens:
        raise InputError("the prompt is empty")
    if asked.echo:
        yield from _echo(session, files, asked, tokens, cached)
    limit = session.context if asked.max_new_tokens is None else asked.max_new_tokens
    if limit == 0:
        yield Part("", reason="length", prompt_tokens=len(tokens))
        return
    scores: list[TokenScore] = []

    def observe(token: int, logits: NDArray[np.float32]) -> None:
        if asked.logprobs is not None:
            scores.append(score(token, logits, asked.logprobs))

    # What the echo ran is in the cache but for the last token, whose logits are wanted again.
    stop, count = StopText(asked.stop), 0
    pieces = generate(
        session, files.tokenizer, tokens, asked.sampling, limit, files.stop_tokens, cached, observe, lookup
    )
    for piece in pieces:
        count += piece.token is not None
        text = stop.add(piece.text)
        if piece.reason is not None and not stop.hit:
            text += stop.held
        ended = stop.hit or piece.reason is not None
        reason = None if not ended else "stop" if stop.hit or piece.reason == STOP else LENGTH
        yield Part(text, tuple(scores), reason, len(tokens), count)
        scores.clear()
        if ended:
            return


def _echo(session: Session, files: ChatFiles, asked: Asked, tokens: Sequence[int], cached: list[int]) -> Iterator[Part]:
    """The prompt itself; with scores it is run token by token, each one scored by what stood before it."""
    if asked.logprobs is None:
        yield Part(files.tokenizer.decode(tokens))
        return
    if len(tokens) > session.context:
        raise InputError(f"the prompt has {len(tokens)} tokens and the context holds {session.context}; shorten it")
    session.reset()
    cached.clear()
    scores = [TokenScore(tokens[0], None)]
    for before, token in pairwise(tokens):
        scores.append(score(token, session.run([before]), asked.logprobs))
        cached.append(before)
    yield Part(files.tokenizer.decode(tokens), tuple(scores))


class BusyError(Exception):
    """Too many wait already; ``seconds`` is about how long the last of them will."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests wait already, for about {seconds:.0f} s; try again then")
        self.seconds = seconds


@dataclass
class Queue:
    """Runs one thing at a time in a thread, in the order of asking.

    longest  how many may wait; ``limit_seconds`` how long one may run
    """

    longest: int
    limit_seconds: float
    waiting: int = 0
    usual_seconds: float = 5.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def estimate(self) -> float:
        """About how long who asks now will wait, seconds."""
        return self.waiting * self.usual_seconds

    async def run(self, work: Callable[[], Iterator[Part]]) -> AsyncIterator[Part]:
        """What ``work`` yields. It is given up between two parts when nobody listens any more, or time is up."""
        if self.waiting > self.longest:
            raise BusyError(self.waiting, self.estimate())
        self.waiting += 1
        try:
            async with self._lock:
                started = time.monotonic()
                async for part in _threaded(work, started + self.limit_seconds):
                    yield part
                self.usual_seconds += 0.3 * (time.monotonic() - started - self.usual_seconds)
        finally:
            self.waiting -= 1


async def _threaded(work: Callable[[], Iterator[Part]], deadline: float) -> AsyncIterator[Part]:
    loop, parts = asyncio.get_running_loop(), asyncio.Queue[Part | Exception | None]()
    abandoned = threading.Event()

    def tell(item: Part | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(parts.put_nowait, item)

    def produce() -> None:
        try:
            for part in work():
                late = time.monotonic() > deadline and part.reason is None
                tell(Part(part.text, part.scores, "length", part.prompt_tokens, part.new_tokens) if late else part)
                if abandoned.is_set() or late:
                    break
            tell(None)
        except Exception as error:
            tell(error)

    running = loop.run_in_executor(None, produce)
    try:
        while (item := await parts.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        abandoned.set()
        await asyncio.shield(running)  # the session is free only when the thread has left it
