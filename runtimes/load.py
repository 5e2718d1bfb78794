"""A bundle opened in Python: what `pocketlm chat` does, as an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..export.bundle import read_manifest
from .chat import DEFAULT_MAX_NEW_TOKENS, Chat, ChatFiles, load_chat_files
from .chat_template import Message
from .sampling import Sampling
from .session import Session
from .targets import get_target
from .verify import check_targets


@dataclass(frozen=True)
class Model:
    """An opened bundle.

    session  tokens in, logits out: ``run(tokens)``, ``reset()``, ``position``, ``context``
    files    tokenizer, chat template and stop tokens
    """

    session: Session
    files: ChatFiles

    def answer(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> str:
        """The answer to a message, or to a conversation of messages (``{"role": ..., "content": ...}``)."""
        return "".join(self.stream(prompt, system=system, sampling=sampling, max_new_tokens=max_new_tokens))

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> Iterator[str]:
        """The same piece by piece; greedy without ``sampling``. Raises InputError if it does not fit the context."""
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        talk = Chat(self.files, self.session, sampling or Sampling(), max_new_tokens)
        tokens, _ = talk.fit(messages)
        return (piece.text for piece in talk.answer(tokens, []))


def load(bundle: str | Path, target: str | None = None, *, threads: int = 2) -> Model:
    """Open a bundle's artifact for one target, the first one that it holds if none is named.

    Raises InputError if the bundle is damaged or lacks the target, or its runtime is not installed.
    """
    folder = Path(bundle)
    names = check_targets(folder, read_manifest(folder), None if target is None else [target])
    return Model(get_target(names[0]).open_session(folder / names[0], threads), load_chat_files(folder))
