"""Text of others, made fit to be shown: without characters that cannot be printed or that turn the text around."""

from __future__ import annotations

import unicodedata

_REPLACEMENT = "\ufffd"
# Cc control, Cs lone surrogates, Co and Cn private or unassigned, Zl and Zp line breaks that editors do not show
_UNFIT = frozenset(("Cc", "Cs", "Co", "Cn", "Zl", "Zp"))
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
LONGEST = 2000  # characters of one piece of text


def plain(text: str, longest: int = LONGEST) -> str:
    """One line of printable text, at most ``longest`` characters of it; what is not fit becomes U+FFFD.

    Directional controls go because text with them reads otherwise than it is (Unicode Technical Report 36, 2.6).
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    joined = cut.replace("\r\n", " ").replace("\n", " ").replace("\t", " ")
    return "".join(_REPLACEMENT if _unfit(character) else character for character in joined)


def _unfit(character: str) -> bool:
    return character in _TURNS or unicodedata.category(character) in _UNFIT
