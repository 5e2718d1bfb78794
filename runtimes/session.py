"""What every runtime offers: one small interface over ONNX Runtime, ExecuTorch and Core ML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class ArtifactError(RuntimeError):
    """An artifact that could not run to its end: a verdict on it. The message is one line of the certificate."""


class Session(Protocol):
    """A loaded artifact with its KV cache: one conversation of one user."""

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        ...

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        ...

    @property
    def position(self) -> int:
        """Tokens in the cache now."""
        ...

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the conversation; the logits behind the last one, float32 (vocab_size,).

        The array may be overwritten by the next call. Raises InputError when the cache would overflow, when there is
        no token, or a token lies outside the vocabulary.
        """
        ...

    def reset(self) -> None:
        """Forget the conversation."""
        ...


@runtime_checkable
class RowsSession(Session, Protocol):
    """A session that can give the logits of a few tokens at once and take tokens back.

    Its logits do not depend, in any bit, on how tokens are divided into calls; ``lookup.same_in_any_call`` tries it.
    """

    def run_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; the logits behind each of them, float32 (tokens, vocab_size). Otherwise as ``run``."""
        ...

    def truncate(self, position: int) -> None:
        """Forget the tokens from ``position`` on. Raises InputError for a position behind the last token."""
        ...


class AllLogits(Protocol):
    """A session whose artifact gives the logits of every token."""

    @property
    def position(self) -> int:
        """Tokens in the cache now."""
        ...

    def run_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; float32 (tokens, vocab_size)."""
        ...

    def reset(self) -> None:
        """Forget the conversation."""
        ...


def check_tokens(session: Session, tokens: Sequence[int]) -> None:
    """Raise InputError unless ``session`` can take these tokens now."""
    from ..errors import InputError

    if not tokens:
        raise InputError("there are no tokens to run; the prompt is empty")
    if session.position + len(tokens) > session.context:
        raise InputError(
            f"{session.position + len(tokens)} tokens do not fit the context of {session.context}; "
            "shorten the conversation or export with a larger --context"
        )
    if not 0 <= min(tokens) <= max(tokens) < session.vocab_size:
        raise InputError(f"a token id lies outside the vocabulary of {session.vocab_size}")


def check_position(session: Session, position: int) -> None:
    """Raise InputError unless ``session`` can go back to ``position``."""
    from ..errors import InputError

    if not 0 <= position <= session.position:
        raise InputError(f"a conversation of {session.position} tokens cannot be cut behind {position}")
