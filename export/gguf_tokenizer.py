"""Recovers the files of a tokenizer from the metadata of a GGUF file.

The vocabulary, merges and flags are handed to the ``tokenizers`` library, put together so that text becomes the same
ids as in llama.cpp (``llama-vocab.cpp`` is where the meaning of each ``tokenizer.ggml.pre`` is defined).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .reading import json_bytes
from .sentencepiece_tokenizer import NORMAL, Pieces, add_template, add_tokens, build_sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _WORDS_AND_LINES
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _WORDS_AND_LINES


@dataclass(frozen=True)
class _Splitting:
    """How text is cut before merges apply.

    patterns         regular expressions, each cuts what the ones before left; none means GPT-2's
    digits           each digit is first cut off on its own
    whole_words      a word that is in the vocabulary is taken before any merge
    begins_with_bos  what a missing add_bos_token means
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    begins_with_bos: bool = False


_SPLIT_LLAMA3 = _Splitting((_LLAMA3,), whole_words=True, begins_with_bos=True)
_SPLIT_DIGITS = _Splitting(digits=True)
_SPLIT_QWEN2 = _Splitting((_QWEN2,))

SPLITTINGS: Mapping[str, _Splitting] = {
    "default": _Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Splitting(),
    "smollm": _SPLIT_DIGITS,
    "starcoder": _SPLIT_DIGITS,
    "refact": _SPLIT_DIGITS,
    "command-r": _SPLIT_DIGITS,
    "llama-bpe": _SPLIT_LLAMA3,
    "llama3": _SPLIT_LLAMA3,
    "llama-v3": _SPLIT_LLAMA3,
    "falcon3": _SPLIT_LLAMA3,
    "smaug-bpe": _Splitting((_LLAMA3,)),
    "dbrx": _Splitting((_LLAMA3,)),
    "qwen2": _SPLIT_QWEN2,
    "deepseek-r1-qwen": _SPLIT_QWEN2,
}

# Tokens that end a turn; one stops generation if the chat template writes it.
_ENDS_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>", "<|endofturn|>",
    "<|endoftext|>", "<|end_of_text|>", "</s>",
)  # fmt: skip


@dataclass(frozen=True)
class _Vocabulary:
    """The checked ``tokenizer.ggml`` lists, and the whole metadata for the rest."""

    fields: Mapping[str, Any]
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields.get(f"tokenizer.ggml.{key}", default)

    def token_id(self, key: str) -> int | None:
        """The id under a key such as eos_token_id, if there is one."""
        index = self.get(key)
        if index is None or index == 0xFFFFFFFF:  # -1: the model has no such token
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise InputError(f"GGUF: tokenizer.ggml.{key} = {index!r} is not one of the {len(self.tokens)} tokens")
        return index

    def token(self, key: str) -> str | None:
        """The text of the token under a key such as eos_token_id."""
        index = self.token_id(key)
        return None if index is None else self.tokens[index]


def recover_tokenizer(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Content by file name: tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja.

    ``fields`` is the metadata of a GGUF file; the chat template is left out if there is none. Raises InputError for
    a kind of tokenizer that is not supported, and for lists that are missing or do not fit together.
    """
    vocabulary = _read_vocabulary(fields)
    kind = vocabulary.get("model")
    if kind == "gpt2":
        splitting = _splitting(vocabulary)
        tokenizer = _byte_level(vocabulary, splitting)
        begins_with_bos = splitting.begins_with_bos
    elif kind == "llama":
        tokenizer = _sentencepiece(vocabulary)
        begins_with_bos = True
    else:
        raise InputError(f"GGUF: the tokenizer model {kind!r} is not supported; supported are: gpt2, llama")
    add_tokens(tokenizer, vocabulary.tokens, vocabulary.types)
    with_bos = bool(vocabulary.get("add_bos_token", begins_with_bos))
    with_eos = bool(vocabulary.get("add_eos_token", False))
    add_template(
        tokenizer,
        vocabulary.token_id("bos_token_id") if with_bos else None,
        vocabulary.token_id("eos_token_id") if with_eos else None,
    )
    template = fields.get("tokenizer.chat_template")
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json_bytes(_settings(vocabulary, with_bos, with_eos)),
        "generation_config.json": json_bytes(_generation(vocabulary, template if isinstance(template, str) else "")),
    }
    return files | ({"chat_template.jinja": template.encode()} if isinstance(template, str) else {})


def _read_vocabulary(fields: Mapping[str, Any]) -> _Vocabulary:
    tokens = _strings(fields, "tokens")
    types = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or not all(isinstance(kind, int) for kind in types):
        raise InputError("GGUF: tokenizer.ggml.token_type must have a number for each token; convert the model again")
    return _Vocabulary(fields, tokens, types, {token: index for index, token in enumerate(tokens)})


def _strings(fields: Mapping[str, Any], key: str) -> list[str]:
    values = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"GGUF: tokenizer.ggml.{key} must be a list of strings; convert the model again")
    return values


def _splitting(vocabulary: _Vocabulary) -> _Splitting:
    name = vocabulary.get("pre")
    if name not in SPLITTINGS:
        raise InputError(
            f"GGUF: tokenizer.ggml.pre = {name!r} is not supported; supported are: {', '.join(sorted(SPLITTINGS))}"
        )
    return SPLITTINGS[name]


def _byte_level(vocabulary: _Vocabulary, splitting: _Splitting) -> Tokenizer:
    """GPT-2's kind: bytes spelled as letters, merges given in the file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [
        (left, right) for left, _, right in (text.partition(" ") for text in _strings(vocabulary.fields, "merges"))
    ]
    strange = next((pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.ids.keys()), None)
    if strange is not None:
        raise InputError(f"GGUF: the merge {' '.join(strange)!r} is not made of tokens; convert the model again")
    bpe = models.BPE(vocab=dict(vocabulary.ids), merges=merges, ignore_merges=splitting.whole_words)
    tokenizer = Tokenizer(bpe)
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(_regex(pattern), "isolated") for pattern in splitting.patterns
    ]
    if splitting.digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.patterns))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """Llama 2's kind."""
    if vocabulary.get("precompiled_charsmap") or vocabulary.get("remove_extra_whitespaces", False):
        raise InputError("GGUF: a SentencePiece tokenizer that rewrites text before cutting it is not supported")
    scores = vocabulary.get("scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise InputError("GGUF: tokenizer.ggml.scores must have a number for each token; convert the model again")
    return build_sentencepiece(
        Pieces(vocabulary.tokens, scores, vocabulary.types, vocabulary.token_id("unknown_token_id")),
        add_prefix=bool(vocabulary.get("add_space_prefix", True)),
    )


def _settings(vocabulary: _Vocabulary, with_bos: bool, with_eos: bool) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = {name: vocabulary.token(f"{key}_token_id") for name, key in names.items()}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {name: token for name, token in tokens.items() if token is not None}
    settings |= {"add_bos_token": with_bos, "add_eos_token": with_eos, "clean_up_tokenization_spaces": False}
    context = vocabulary.fields.get(f"{vocabulary.fields.get('general.architecture')}.context_length")
    return settings | ({"model_max_length": context} if isinstance(context, int) else {})


def _generation(vocabulary: _Vocabulary, template: str) -> dict[str, Any]:
    """The content of generation_config.json: eos_token_id lists every token that stops generation."""
    named = [vocabulary.token_id(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    in_template = [vocabulary.ids.get(token) for token in _ENDS_OF_TURN if token in template]
    special = [index for index in in_template if index is not None and vocabulary.types[index] != NORMAL]
    stops = dict.fromkeys([*(index for index in named if index is not None), *special])
    generation: dict[str, Any] = {"eos_token_id": list(stops)}
    for name, key in ("bos", "bos"), ("pad", "padding"):
        index = vocabulary.token_id(f"{key}_token_id")
        if index is not None:
            generation[f"{name}_token_id"] = index
    return generation
