"""Prompt lookup: several tokens from one call, where the text repeats what stood there before.

What followed the last few tokens the last time they came is guessed to follow again; one call of the model judges all
guesses, and those that the model says itself are taken (Saxena 2023, "Prompt Lookup Decoding"; transformers'
prompt_lookup_num_tokens). A guess never changes what is said: each token is chosen from the model's own logits, by the
same sampler with the same random number.

That holds to the bit if the logits of a token do not depend on the call that it is in, which is what a RowsSession
promises and ``same_in_any_call`` tries on the model itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .session import RowsSession, Session

MOST_GUESSES = 7  # eight tokens a call: an even number needs no filling up
LONGEST_NGRAM = 3


def find_guesses(tokens: NDArray[np.int64], most: int, longest: int = LONGEST_NGRAM) -> list[int]:
    """What followed the last n-gram of ``tokens`` (count,) when it came before: at most ``most`` tokens.

    The longest n-gram that came before counts, up to ``longest``, and of its places the latest. A single token says
    little and gives one guess. What repeats without a pause is guessed to go on repeating.
    """
    if most < 1 or len(tokens) < 2:
        return []
    places = np.flatnonzero(tokens[:-1] == tokens[-1])
    length = 0
    while places.size and length < longest:
        found, length = int(places[-1]), length + 1
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[-1 - length]] if length < len(tokens) else places[:0]
    if not length:
        return []
    followed = tokens[found + 1 :]
    guesses: list[int] = np.resize(followed, most if length > 1 else 1).tolist()
    return guesses


@dataclass
class Counts:
    """Calls of the model behind the prompt, the tokens guessed in them, and the guesses that were right."""

    calls: int = 0
    guessed: int = 0
    accepted: int = 0


class Plain:
    """Logits token after token, one call for each."""

    def __init__(self, session: Session, cached: list[int]) -> None:
        """``cached`` as in ``generate``."""
        self.counts = Counts()
        self._session, self._cached = session, cached

    def after(self, token: int, wanted: int) -> NDArray[np.float32]:
        """The logits behind ``token``, float32 (vocab_size,)."""
        logits = self._session.run([token])
        self._cached.append(token)
        self.counts.calls += 1
        return logits

    def close(self) -> None:
        """Nothing is left to tidy up."""


class Guessing:
    """Logits token after token, from fewer calls where guesses are right."""

    def __init__(self, session: RowsSession, cached: list[int], history: Sequence[int], most: int) -> None:
        """``cached`` as in ``generate``; ``history`` holds all tokens so far; ``most`` guesses are made for a call."""
        self.counts = Counts()
        self._session, self._cached, self._most = session, cached, most
        self._history = array("q", history)
        self._width = most  # guesses for the next call: fewer after wrong ones, more after right ones
        self._guesses: list[int] = []  # not yet judged
        self._made = 0  # guesses of the last call
        self._rows = np.empty((0, session.vocab_size), np.float32)  # behind each of the guesses

    def after(self, token: int, wanted: int) -> NDArray[np.float32]:
        """The logits behind ``token``, float32 (vocab_size,); at most ``wanted`` tokens more will be asked for."""
        self._history.append(token)
        if self._guesses and self._guesses[0] == token:
            self.counts.accepted += 1
            del self._guesses[0]
            self._cached.append(token)
            logits: NDArray[np.float32] = self._rows[0]
            self._rows = self._rows[1:]
            return logits
        return self._call(token, wanted)

    def _call(self, token: int, wanted: int) -> NDArray[np.float32]:
        self._adapt()
        position = len(self._cached)
        room = min(self._width, wanted - 1, self._session.context - position - 1)
        guesses = find_guesses(np.frombuffer(self._history, np.int64), room)
        self._session.truncate(position)
        rows = self._session.run_rows([token, *guesses])
        self._cached.append(token)
        self.counts.calls += 1
        self.counts.guessed += len(guesses)
        self._guesses, self._rows, self._made = guesses, rows[1:], len(guesses)
        logits: NDArray[np.float32] = rows[0]
        return logits

    def _adapt(self) -> None:
        """A call of twice the tokens after one whose guesses were all right, of two after one without a right one."""
        if not self._made:
            return
        if not self._guesses:
            self._width = min(2 * self._width + 1, self._most)
        elif len(self._guesses) == self._made:
            self._width = min(1, self._most)
        self._made = 0

    def close(self) -> None:
        """Take back what was only guessed."""
        if self._session.position > len(self._cached):
            self._session.truncate(len(self._cached))


def same_in_any_call(session: RowsSession, most: int = MOST_GUESSES) -> bool:
    """Whether ``session`` keeps RowsSession's promise for calls of up to ``most`` guesses, on a few tokens.

    Forgets the conversation.
    """
    count = min(most + 1, session.context - 1)
    if count < 2:
        return True
    tokens = [(31 * index * index + 7) % session.vocab_size for index in range(count + 1)]
    session.reset()
    session.run(tokens[:1])
    alone = np.stack([session.run([token]).copy() for token in tokens[1:]])
    same = True
    for size in range(2, count + 1):
        session.truncate(1)
        same = same and np.array_equal(session.run_rows(tokens[1 : size + 1]), alone[:size])
    session.reset()
    return same


def usable(session: Session, most: int | None, tell: Callable[[str], None]) -> int | None:
    """``most`` if guessing changes no token of this session's, else None, and one line to ``tell`` that says so."""
    if most is None:
        return None
    assert isinstance(session, RowsSession), "guesses need the logits of several tokens"
    if same_in_any_call(session, most):
        return most
    tell("lookup is off: a token's logits depend here on how many are in the call, and guesses could change answers")
    return None
