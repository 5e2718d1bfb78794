"""SentencePiece vocabularies as tokenizers of the ``tokenizers`` library.

Kudo and Richardson 2018; the meaning of the fields is that of sentencepiece_model.proto, and the rules of encoding are
those of its normalizer.cc, bpe_model.cc and unigram_model.cc.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type, and tokenizer.ggml.token_type
_NONE: Mapping[str, Mapping[str, bool]] = MappingProxyType({})


@dataclass(frozen=True)
class Pieces:
    """A vocabulary by id: texts, scores, types; and the id of the unknown piece, if there is one."""

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unknown: int | None

    @property
    def with_bytes(self) -> bool:
        """Whether what is not in the vocabulary is spelled in bytes."""
        return "<0x00>" in self.texts


def build_sentencepiece(
    pieces: Pieces,
    add_prefix: bool,
    metaspace: Literal["always", "first"] | None = None,
    unigram: bool = False,
    remove_spaces: bool = False,
    charsmap: bytes = b"",
) -> Tokenizer:
    """Spaces are written ▁, pieces are found by score, bytes are the fallback.

    add_prefix     a space is put in front of a text
    metaspace      transformers' ways: not where there is a space; "always" behind added tokens too, or only at the
                   "first" text. None is llama.cpp's: in front of every text, and behind each added token
    unigram        the best-scored cut of the whole text, and not the best-scored pair merged first
    remove_spaces  spaces at both ends go, several become one
    charsmap       replacements in SentencePiece's compiled form, made before anything else
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(_unigram(pieces) if unigram else _bpe(pieces))
    steps = _normalizers(add_prefix and metaspace is None, remove_spaces, charsmap)
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    if add_prefix and metaspace is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    decoding: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if add_prefix else decoding)
    return tokenizer


def _normalizers(add_prefix: bool, remove_spaces: bool, charsmap: bytes) -> Iterator[normalizers.Normalizer]:
    from tokenizers import Regex, normalizers

    if charsmap:
        yield normalizers.Precompiled(charsmap)
    if remove_spaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if add_prefix:
        yield normalizers.Prepend("▁")
    yield normalizers.Replace(" ", "▁")


def _unigram(pieces: Pieces) -> models.Unigram:
    from tokenizers import models

    # A control piece is never found in text: SentencePiece leaves it out of its search.
    lowest = min(pieces.scores)
    scored = [
        (text, score if kind in (NORMAL, USER_DEFINED) else lowest - 1000)
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.types, strict=True)
    ]
    return models.Unigram(scored, pieces.unknown, pieces.with_bytes)


def _bpe(pieces: Pieces) -> models.BPE:
    from tokenizers import models

    return models.BPE(
        vocab={text: index for index, text in enumerate(pieces.texts)},
        merges=_merges_by_score(pieces),
        unk_token=None if pieces.unknown is None else pieces.texts[pieces.unknown],
        fuse_unk=True,
        byte_fallback=pieces.with_bytes,
    )


def _merges_by_score(pieces: Pieces) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best score first.

    Only ordinary tokens take part: SentencePiece never merges into bytes or control tokens.
    """
    ids = {text: index for index, text in enumerate(pieces.texts) if pieces.types[index] == NORMAL}
    ranked = [
        (-pieces.scores[index], ids[token[:cut]], ids[token[cut:]])
        for token, index in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(pieces.texts[left], pieces.texts[right]) for _, left, right in sorted(ranked)]


def add_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], types: Sequence[int], flags: Mapping[str, Mapping[str, bool]] = _NONE
) -> None:
    """Tokens that are found in text before it is cut; control tokens can be left out when decoding.

    flags  lstrip, rstrip, single_word and normalized, of tokens that have them; one that is written with ▁ is looked
           for where spaces have become ▁
    """
    from tokenizers import AddedToken

    def of_kinds(*kinds: int) -> list[AddedToken]:
        pairs = [(text, kind) for text, kind in zip(texts, types, strict=True) if text and kind in kinds]
        return [AddedToken(text, **({"normalized": "▁" in text} | dict(flags.get(text, {})))) for text, _ in pairs]

    tokenizer.add_special_tokens(of_kinds(UNKNOWN, CONTROL))
    tokenizer.add_tokens(of_kinds(USER_DEFINED))


def add_template(tokenizer: Tokenizer, bos: int | None, eos: int | None) -> None:
    """Have the tokenizer put these ids in front of and behind every text."""
    from tokenizers import processors

    if bos is None and eos is None:
        return
    names = {"BOS": bos, "EOS": eos}
    before, after = (["BOS"] if bos is not None else []), (["EOS"] if eos is not None else [])
    special = [
        {"id": name, "ids": [index], "tokens": [tokenizer.id_to_token(index)]}
        for name, index in names.items()
        if index is not None
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after], special_tokens=special
    )
