"""A bundle's artifact answering a task: log-likelihoods and greedy answers, by its own kernels and its own cache."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chat_template import ChatTemplate, encode_chat
from .generate import generate
from .metrics import log_softmax
from .sampling import Sampling
from .serve_engine import StopText
from .session import Session
from .task_scoring import Scores, Spent, Written
from .tokenizer import Tokenizer

Logprobs = NDArray[np.float64]


@dataclass(frozen=True)
class Artifact:
    """A session with what belongs to it. ``template`` is None for a model without one: it is asked in plain text."""

    session: Session
    tokenizer: Tokenizer
    template: ChatTemplate | None
    stop_tokens: frozenset[int]

    def _tokens(self, text: str) -> list[int]:
        """Of plain text; control tokens written in it are text."""
        return self.tokenizer.beginning() + self.tokenizer.encode(text, special=False)

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The tokens that a generated answer follows."""
        if self.template is None:
            return self._tokens(prompt)
        return encode_chat(self.tokenizer, self.template, [{"role": "user", "content": prompt}])

    def score(self, context: str, continuations: Sequence[str]) -> Scores:
        """See Subject. For what ``check_room`` has let through; raises InputError if the logits are no numbers."""
        started = time.perf_counter()
        length = len(self._tokens(context))
        known: dict[tuple[int, ...], Logprobs] = {}
        read, logprobs = 0, []
        for continuation in continuations:
            tokens = self._tokens(context + continuation)
            assert 0 < length < len(tokens), "see check_room"
            read += len(tokens)
            logprobs.append(self._score(tuple(tokens[:length]), tokens[length:], known))
        return Scores(tuple(logprobs), Spent(time.perf_counter() - started, read, 0))

    def _score(self, prefix: tuple[int, ...], rest: Sequence[int], known: dict[tuple[int, ...], Logprobs]) -> float:
        """Log-probability of ``rest`` behind ``prefix``; ``known`` keeps what follows a prefix."""
        if prefix not in known or len(rest) > 1:  # a session cannot take tokens back
            self.session.reset()
            known[prefix] = log_softmax(self.session.run(prefix).astype(np.float64))
        total = float(known[prefix][rest[0]])
        for before, token in pairwise(rest):
            total += float(log_softmax(self.session.run([before]).astype(np.float64))[token])
        if math.isnan(total):
            raise InputError("the model returned logits that are not numbers; run `pocketlm verify` on the bundle")
        return total

    def write(self, prompt: str, limit: int) -> Written:
        """See Subject. Without a chat template the answer ends with its line."""
        started = time.perf_counter()
        tokens = self.prompt_tokens(prompt)
        stop, shown, new = StopText(() if self.template else ("\n",)), "", 0
        for piece in generate(self.session, self.tokenizer, tokens, Sampling(), limit, self.stop_tokens):
            new += piece.token is not None
            shown += stop.add(piece.text)
            if stop.hit:
                break
        return Written(shown + stop.held, Spent(time.perf_counter() - started, len(tokens), new))

    def check_room(self, asked: Iterable[tuple[int, str, str]], max_new_tokens: int) -> None:
        """Raise InputError, naming the item, unless each (number, prompt, continuation) fits the context."""
        for number, prompt, continuation in asked:
            if continuation:
                size = len(self._tokens(prompt + continuation))
                if size <= len(self._tokens(prompt)):
                    raise InputError(f"item {number} of the task: a choice has no tokens of its own; write it out")
            else:
                size = len(self.prompt_tokens(prompt)) + max_new_tokens
            if size > self.session.context:
                raise InputError(
                    f"item {number} of the task takes {size} tokens and the context holds {self.session.context}; "
                    "shorten it or export with a larger --context"
                )
