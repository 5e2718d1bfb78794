"""Text to token ids and back, with the tokenizer.json of a bundle and Hugging Face's `tokenizers` library."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_INCOMPLETE = "\ufffd"  # what a decoder puts in place of bytes that are not valid UTF-8 (yet)
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so the most tokens that one character can be spread over
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A model's tokenizer. ``special_tokens`` are the strings that stand for control tokens."""

    def __init__(self, content: str) -> None:
        """Load the content of a tokenizer.json; raises InputError if it is none."""
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"tokenizer.json cannot be read ({_one_line(error)}); export the model again") from error
        self._library.no_truncation()
        self._library.no_padding()
        added = self._library.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.added_tokens: tuple[str, ...] = tuple(entry.content for entry in added.values())
        self.special_tokens: tuple[str, ...] = tuple(entry.content for entry in added.values() if entry.special)
        self._twins: dict[frozenset[str], Twin] = {}

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; nothing is added in front or behind.

        ``special`` says whether special tokens written in the text become control tokens: True for text that a chat
        template wrote, False for text that a user wrote. Raises InputError if the text is not valid Unicode.
        """
        check_unicode(text)
        if special or not any(token in text for token in self.special_tokens):
            return list(self._library.encode(text, add_special_tokens=False).ids)
        return self.twin(self.special_tokens).encode(text)

    def beginning(self) -> list[int]:
        """What the tokenizer itself puts in front of a text: a begin-of-text token, or nothing."""
        whole = list(self._library.encode("a", add_special_tokens=True).ids)
        plain = list(self._library.encode("a", add_special_tokens=False).ids)
        return whole[: whole.index(plain[0])] if plain and plain[0] in whole else []

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens have none."""
        return str(self._library.decode(list(tokens), skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token given as a string, None if there is no such token."""
        found: int | None = self._library.token_to_id(token)
        return found

    def has_text(self, token: int) -> bool:
        """Whether a token can show in decoded text: it exists and is not a control token."""
        return token not in self._special_ids and self._library.id_to_token(token) is not None

    def is_byte(self, token: int) -> bool:
        """Whether a token is one raw byte, as tokenizers with byte fallback write what is not in their vocabulary."""
        return _BYTE_TOKEN.fullmatch(self._library.id_to_token(token) or "") is not None

    def twin(self, control: Collection[str]) -> Twin:
        """The same tokenizer, to which the strings ``control`` are ordinary text; built once, which takes a moment."""
        key = frozenset(control)
        if key not in self._twins:
            self._twins[key] = Twin(self._library, key)
        return self._twins[key]


class Twin:
    """A tokenizer that reads control tokens as plain text wherever they are not written as their ``aliases``.

    The library's own ``encode_special_tokens`` does this for a whole text and for tokens marked special only. Chat
    needs control tokens from the template beside the same strings from a user, in one call: encoded in pieces, text
    would lose merges across their borders, and tokenizers that put a space in front of a text would put one in front
    of every piece. So here each control token is renamed, to a string that nobody can guess, and has the same id.
    """

    def __init__(self, library: Library, control: Collection[str]) -> None:
        from tokenizers import Tokenizer as Library

        nonce = secrets.token_hex(8)
        content: dict[str, Any] = json.loads(library.to_str())
        self.aliases: dict[str, str] = {}
        for entry in content["added_tokens"]:
            if entry["content"] in control:
                alias = f"\U000f0000{nonce}.{entry['id']}\U000f0001"
                self.aliases[entry["content"]] = entry["content"] = alias
        self._library = Library.from_str(json.dumps(content))
        # The library numbers tokens that its model does not know as they come: translate to the original's ids.
        self._ids = {self._library.token_to_id(entry["content"]): entry["id"] for entry in content["added_tokens"]}
        self._control = {library.token_to_id(token): token for token in self.aliases}

    def encode(self, text: str) -> list[int]:
        """Token ids, as the original tokenizer numbers them.

        Raises InputError if the vocabulary spells a control token out of ordinary text.
        """
        tokens = []
        for token in self._library.encode(text, add_special_tokens=False).ids:
            if token not in self._ids and token in self._control:
                name = self._control[token]
                raise InputError(f"this tokenizer cannot write {name!r} as plain text; take it out of the message")
            tokens.append(self._ids.get(token, token))
        return tokens


class StreamDecoder:
    """Decodes tokens as they come; the pieces joined equal ``decode`` of all tokens, for any tokens.

    A piece is held back until no later token can change it: while a character's bytes are incomplete, and through a
    run of byte tokens, which the decoder judges as a whole. Each token is decoded a bounded number of times.
    (The library's DecodeStream raises on byte runs that turn out not to be UTF-8, and never shows an unfinished end.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor: list[int] = []  # the last token shown: decoders treat the first of a text differently
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        if not self._tokenizer.has_text(token):
            return ""
        self._held.append(token)
        if self._tokenizer.is_byte(token):
            return ""
        if not self._tokenizer.decode([token]).endswith(_INCOMPLETE):
            return self._flush()
        # The token ends within a character, or completes one that others began.
        if len(self._held) > _LONGEST_CHARACTER or self._tokenizer.decode(self._held).endswith(_INCOMPLETE):
            return ""
        return self._flush()

    def finish(self) -> str:
        """The text still held back; incomplete bytes show as U+FFFD."""
        return self._flush() if self._held else ""

    def _flush(self) -> str:
        shown = self._tokenizer.decode(self._anchor) if self._anchor else ""
        text = self._tokenizer.decode(self._anchor + self._held)
        self._anchor, self._held = self._held[-1:], []
        return text[len(shown) :]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle; raises InputError if the folder has none that can be read."""
    return Tokenizer(read_text(folder / "tokenizer.json"))


def read_text(path: Path) -> str:
    """The content of a text file of a bundle; raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)}); give the folder of a finished export") from error


def check_unicode(text: str) -> None:
    """Raise InputError if a text has lone surrogates, as undecodable bytes of a terminal or a file leave them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("the text is not valid Unicode; give it as UTF-8") from error


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these tokens, the longest first, as the library does; nothing if there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
