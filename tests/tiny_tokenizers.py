"""Small tokenizers of the kinds that models have, built with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pocketlm.runtimes.tokenizer import Tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

KINDS = ("byte level", "llama 2", "metaspace", "gemma", "bare")
TEXT = "The quick brown fox jumps over the lazy dog. What is the capital of France? user assistant system\nParis.  "
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")


# Llama 3's, whose tokenizer.json also sets ignore_merges.
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BYTE_LEVEL_STEPS = {
    "byte level": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm2": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama 3": [
        pre_tokenizers.Split(Regex(LLAMA_3_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def library(kind: str, text: Sequence[str] = (TEXT,) * 3, vocab_size: int = 600) -> Library:
    """An untrained tokenizer's pipeline, then trained on text, with control tokens and two ordinary added tokens."""
    byte_fallback = kind in ("llama 2", "metaspace", "gemma")
    built = Library(models.BPE(byte_fallback=byte_fallback, unk_token=None, ignore_merges=kind == "llama 3"))
    alphabet: list[str] = []
    if kind in BYTE_LEVEL_STEPS:
        steps = BYTE_LEVEL_STEPS[kind]
        built.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
        built.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "llama 2":
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        built.decoder = decoders.Sequence(steps)
    elif kind == "metaspace":
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    elif kind == "gemma":
        built.normalizer = normalizers.Replace(" ", "▁")
        built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bytes_first = [f"<0x{value:02X}>" for value in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=bytes_first, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(text, trainer)
    if byte_fallback:  # trained as special tokens so that they have ids; in real files they are ordinary vocabulary
        content = json.loads(built.to_str())
        content["added_tokens"] = []
        built = Library.from_str(json.dumps(content))
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    built.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return built


@cache
def tokenizer(kind: str = "byte level") -> Tokenizer:
    return Tokenizer(library(kind).to_str())


@cache
def chatml_tokenizer() -> Tokenizer:
    """The tokenizer of tests/tiny.py."""
    from tiny import write_tokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return Tokenizer((Path(folder) / "tokenizer.json").read_text())
