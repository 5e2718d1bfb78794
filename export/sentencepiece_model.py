"""Model folders that have SentencePiece's own file, ``tokenizer.model``, and no ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .reading import read_json_object
from .sentencepiece_tokenizer import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Pieces,
    add_template,
    add_tokens,
    build_sentencepiece,
)

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_LARGEST_FILE = 64 << 20  # bytes; Gemma's, one of the largest, has 4 MB
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_NAMES = ("bos", "eos", "unk", "pad")


def convert_sentencepiece(folder: Path, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The content of tokenizer.json, and the settings of tokenizer_config.json that go with it.

    settings  the folder's tokenizer_config.json: its special tokens, added tokens and add_bos_token count

    Raises InputError if tokenizer.model is none, or of a kind that is not supported.
    """
    model = _read(folder / "tokenizer.model")
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise InputError(f"{folder}: tokenizer.model is neither of the kind BPE nor Unigram; both are supported")
    if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise InputError(
            f"{folder}: tokenizer.model does not write spaces as ▁ in front of words, which alone is supported"
        )
    pieces = _pieces(model, _added_tokens(folder, settings), folder)
    ids = {text: index for index, text in enumerate(pieces.texts)}
    named = {name: _named_token(model, settings, name, pieces) for name in _NAMES}
    rewrites = bool(model.normalizer_spec.remove_extra_whitespaces or model.normalizer_spec.precompiled_charsmap)
    tokenizer = build_sentencepiece(
        pieces,
        add_prefix=bool(model.normalizer_spec.add_dummy_prefix),
        # Where text is rewritten first, its beginning is not known any more.
        metaspace=None if rewrites else "always" if settings.get("legacy") is True else "first",
        unigram=model.trainer_spec.model_type == _UNIGRAM,
        remove_spaces=bool(model.normalizer_spec.remove_extra_whitespaces),
        charsmap=bytes(model.normalizer_spec.precompiled_charsmap),
    )
    add_tokens(tokenizer, pieces.texts, pieces.types, _flags(settings))
    with_bos, with_eos = settings.get("add_bos_token", True), settings.get("add_eos_token", False)
    bos, eos = named["bos"], named["eos"]
    add_template(tokenizer, ids[bos] if with_bos and bos else None, ids[eos] if with_eos and eos else None)
    # The class of the folder builds its own tokenizer out of tokenizer.model: the written file is what counts.
    changed = {f"{name}_token": token for name, token in named.items() if token is not None}
    return tokenizer.to_str(), {**settings, **changed, "tokenizer_class": "PreTrainedTokenizerFast"}


def _read(path: Path) -> Any:
    """The ModelProto in a file."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as proto
    except ImportError as error:
        raise InputError(
            f"{path} needs the package sentencepiece to be read: pip install 'pocketlm[sentencepiece]'"
        ) from error
    if path.stat().st_size > _LARGEST_FILE:
        raise InputError(f"{path} has more than {_LARGEST_FILE >> 20} MB, which no SentencePiece model has")
    model = proto.ModelProto()  # type: ignore[attr-defined]  # protobuf makes the classes when it is imported
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is a class of its C extension
        raise InputError(f"{path} is not a SentencePiece model: {error}") from error
    if not model.pieces:
        raise InputError(f"{path} is not a SentencePiece model: it has no pieces")
    return model


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Tokens beside the model's pieces by id, and whether each is a control token."""
    found: dict[int, tuple[str, bool]] = {}
    path = folder / "added_tokens.json"
    if path.is_file():
        found |= {index: (text, True) for text, index in read_json_object(path).items() if isinstance(index, int)}
    entries = settings.get("added_tokens_decoder", {})
    if not isinstance(entries, Mapping):
        raise InputError(f"{folder}: added_tokens_decoder of tokenizer_config.json must be an object")
    for index, entry in entries.items():
        text = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(text, str) or not str(index).isdecimal():
            raise InputError(
                f"{folder}: tokenizer_config.json has an added token {index!r} without an id and a content"
            )
        if not all(isinstance(entry.get(name, False), bool) for name in ("special", *_FLAGS)):
            raise InputError(f"{folder}: the added token {text!r} has a flag that is neither true nor false")
        found[int(index)] = text, entry.get("special", False)
    return found


def _flags(settings: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """How added tokens are looked for, by their texts, as far as the settings say it."""
    entries = settings.get("added_tokens_decoder", {}).values()
    return {entry["content"]: {name: entry[name] for name in _FLAGS if name in entry} for entry in entries}


def _pieces(model: Any, added: Mapping[int, tuple[str, bool]], folder: Path) -> Pieces:
    texts = [piece.piece for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    for index, (text, special) in sorted(added.items()):
        kind = CONTROL if special else USER_DEFINED
        if index == len(texts):
            texts.append(text)
            scores.append(0.0)
            types.append(kind)
        elif index > len(texts):
            raise InputError(f"{folder}: the added token {text!r} has the id {index}, but there is none {len(texts)}")
        elif texts[index] != text:
            raise InputError(
                f"{folder}: the id {index} is {texts[index]!r} in tokenizer.model and {text!r} as added token"
            )
        elif special:
            types[index] = kind
    if len(set(texts)) != len(texts):
        raise InputError(f"{folder}: two ids of tokenizer.model and the added tokens have the same text")
    return Pieces(texts, scores, types, _unknown(model))


def _unknown(model: Any) -> int | None:
    return next((index for index, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None)


def _named_token(model: Any, settings: Mapping[str, Any], name: str, pieces: Pieces) -> str | None:
    """A special token by its name: as the settings say, else as the model's own record says."""
    given = settings.get(f"{name}_token")
    text = given.get("content") if isinstance(given, Mapping) else given
    if isinstance(text, str):
        if text not in pieces.texts:
            raise InputError(f"tokenizer_config.json: {name}_token {text!r} is not a token of tokenizer.model")
        return text
    index = getattr(model.trainer_spec, f"{name}_id")
    return pieces.texts[index] if 0 <= index < len(model.pieces) else None
