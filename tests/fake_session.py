"""A session without a model, for tests of what is built upon sessions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pocketlm.runtimes.session import check_tokens


class FakeSession:
    """Logits that depend on every token in the cache and on their order; or that follow a ``script`` of tokens.

    ``runs`` notes the length of every run. The returned array is overwritten by the next run, as the protocol allows.
    """

    def __init__(self, vocab_size: int, context: int, script: Sequence[int] = (), loud: Sequence[int] = ()) -> None:
        self.vocab_size = vocab_size
        self.context = context
        self.runs: list[int] = []
        self.resets = 0
        self.cache: list[int] = []
        self._script = list(script)
        self._loud = loud
        self._logits = np.zeros(vocab_size, np.float32)

    @property
    def position(self) -> int:
        return len(self.cache)

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        check_tokens(self, tokens)
        self.runs.append(len(tokens))
        self.cache.extend(tokens)
        source = random.Random(repr(self.cache))
        self._logits[:] = [source.random() for _ in range(self.vocab_size)]
        for token in self._loud:  # these tokens are more likely than all others
            self._logits[token] += 1
        if self._script:
            self._logits[self._script.pop(0)] = 9
        return self._logits

    def reset(self) -> None:
        self.resets += 1
        self.cache.clear()
