"""Token after token from a session, streamed as text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .lookup import Counts, Guessing, Plain
from .sampling import Sampling, sample, uniforms
from .session import RowsSession, Session
from .tokenizer import StreamDecoder, Tokenizer

STOP = "stop"  # the model wrote a stop token
LENGTH = "length"  # as many tokens as were asked for
CONTEXT = "context"  # the cache is full


@dataclass(frozen=True)
class Timing:
    """How long an answer took. Rates are None where there was nothing to measure.

    prompt_tokens                 of the whole prompt
    cached_tokens                 those of them that were in the cache already
    generated_tokens              with the stop token
    time_to_first_token_seconds   from the call to the first token
    prefill_tokens_per_second     of the prompt tokens that had to be run
    decode_tokens_per_second      of the generated tokens after the first
    decode_calls                  of the model, behind the prompt
    guessed_tokens                tokens tried in those calls because the text had them before
    accepted_tokens               those of them that the model said as well
    accepted_per_call             None where there was no call
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token_seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    decode_calls: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_call: float | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer: one generated token, or the end.

    token   None at an end for any other reason than a stop token
    text    what can be shown now; parts of a character are held back until it is whole
    reason  None, or at the end STOP, LENGTH or CONTEXT
    timing  at the end
    """

    token: int | None
    text: str
    reason: str | None = None
    timing: Timing | None = None


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt_tokens: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    cached: list[int] | None = None,
    observe: Callable[[int, NDArray[np.float32]], None] | None = None,
    lookup: int | None = None,
) -> Iterator[Piece]:
    """Answer a prompt; the last piece has the reason for the end, and the timing.

    ``observe`` is told each chosen token and the logits it was chosen from (vocab_size,), which it must not keep.
    ``cached`` lists the tokens in the session's cache and is kept up to date: pass the same list for each turn of a
    conversation, and only what is new of a prompt is run. Without it the session starts anew.
    ``lookup`` is how many tokens are guessed for a call (see ``lookup``); any number gives the same tokens. It needs a
    RowsSession.

    Raises InputError if the prompt is empty or does not fit the context, or max_new_tokens is not positive.
    """
    if max_new_tokens < 1:
        raise InputError(f"the number of new tokens must be at least 1, it is {max_new_tokens}")
    cached = [] if cached is None else cached
    started = perf_counter()
    logits, reused = _prefill(session, prompt_tokens, cached)
    prefilled = perf_counter()
    steps = _steps(session, prompt_tokens, cached, lookup)
    history = list(prompt_tokens)
    random = uniforms(sampling.seed)
    decoder = StreamDecoder(tokenizer)
    first = paused = 0.0
    try:
        while True:
            token = sample(logits, sampling, history, random)
            if observe is not None:
                observe(token, logits)
            history.append(token)
            now = perf_counter()
            first = first or now
            generated = len(history) - len(prompt_tokens)
            reason = _reason(token, stop_tokens, len(cached) >= session.context, generated >= max_new_tokens)
            if reason != STOP:
                yield Piece(token, decoder.add(token))
                paused += perf_counter() - now  # the time of whoever reads the pieces is not the model's
            if reason:
                break
            logits = steps.after(token, max_new_tokens - generated)
    finally:
        steps.close()
    seconds = (first - started, prefilled - started, perf_counter() - first - paused)
    timing = _timing(len(prompt_tokens), reused, generated, *seconds, steps.counts)
    yield Piece(token if reason == STOP else None, decoder.finish(), reason, timing)


def _steps(session: Session, prompt: Sequence[int], cached: list[int], lookup: int | None) -> Plain | Guessing:
    if lookup is None:
        return Plain(session, cached)
    assert isinstance(session, RowsSession), "guesses need the logits of several tokens"
    return Guessing(session, cached, prompt, lookup)


def _reason(token: int, stop_tokens: Collection[int], full: bool, enough: bool) -> str | None:
    """Why this token is the last, if it is."""
    if token in stop_tokens:
        return STOP
    if enough:
        return LENGTH
    return CONTEXT if full else None


def _prefill(session: Session, prompt: Sequence[int], cached: list[int]) -> tuple[NDArray[np.float32], int]:
    """Logits behind the prompt, and how many of its tokens did not have to be run."""
    if len(prompt) > session.context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and the context holds {session.context}; "
            "shorten it or export with a larger --context"
        )
    reused = len(cached)
    # An interrupted run may have left other tokens in the cache than were noted. One token at least must be run for
    # its logits, and a session cannot take back the last one.
    if session.position != reused or reused >= len(prompt) or cached != list(prompt[:reused]):
        session.reset()
        cached.clear()
        reused = 0
    logits = session.run(prompt[reused:])
    cached.extend(prompt[reused:])
    return logits, reused


def _timing(
    prompt: int, reused: int, generated: int, to_first: float, prefill: float, decode: float, counts: Counts
) -> Timing:
    return Timing(
        prompt_tokens=prompt,
        cached_tokens=reused,
        generated_tokens=generated,
        time_to_first_token_seconds=to_first,
        prefill_tokens_per_second=_rate(prompt - reused, prefill),
        decode_tokens_per_second=_rate(generated - 1, decode),
        decode_calls=counts.calls,
        guessed_tokens=counts.guessed,
        accepted_tokens=counts.accepted,
        accepted_per_call=counts.accepted / counts.calls if counts.calls else None,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
