"""Tokenizers recovered from GGUF files, against the tokenizer they were made from, llama.cpp, sentencepiece."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pocketlm.errors import InputError
from pocketlm.export.gguf_reader import GgufReader
from pocketlm.export.gguf_tokenizer import SPLITTINGS, recover_tokenizer
from tiny import CHAT_TEMPLATE, TEXT, tiny_gguf, tiny_llama

AWKWARD = [
    "", " ", "  leading", "trailing  ", "a\n\n\n b\t\tc   \n", "The year 2024, 1234567 & 3.14159!", "½ ² Ⅷ ٣٤٥ 一二三",
    "def f(x):\n    return x ** 2  # done\n", "日本語のテキスト、中文文本。한국어", "مرحبا بالعالم 123 שלום",
    "😀👩‍👩‍👧‍👦🇫🇷", "naïve café e\u0301", "\x00\x01\x07\x1b[0m\x7f", "I'll we're DON'T it's 'S", "    " * 20, "x" * 100,
    "\r\n\r\n\u00a0\u2003\u200b\u3000z", "$100+<=>^~|{}[]()_-", "<|im_start|>user\nhi<|im_end|>\n", TEXT,
]  # fmt: skip


def load(files: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source"), layers=1)


@pytest.fixture(scope="module")
def fields(folder: Path) -> dict[str, Any]:
    """The metadata of a GGUF file with a byte-level tokenizer."""
    return dict(GgufReader(tiny_gguf(folder / "a.gguf", folder)).metadata)


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        recover_tokenizer(fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_byte_level_equals_the_tokenizer_it_was_made_from(folder: Path, fields: dict[str, Any]) -> None:
    from tokenizers import Tokenizer

    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    recovered = load(recover_tokenizer(fields))
    for text in AWKWARD:
        ids = original.encode(text).ids
        assert recovered.encode(text).ids == ids
        assert recovered.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)
        assert recovered.decode(ids) == original.decode(ids)


def test_transformers_takes_the_files(fields: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = recover_tokenizer(fields)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer(AWKWARD)["input_ids"] == [load(files).encode(text).ids for text in AWKWARD]
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert files["chat_template.jinja"].decode() == CHAT_TEMPLATE


def test_equals_transformers_reading_of_the_same_file(folder: Path, fields: dict[str, Any]) -> None:
    """transformers knows no ``smollm`` splitting, so digits are left out here."""
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(folder, gguf_file=tiny_gguf(folder / "a.gguf", folder).name)
    ours = load(recover_tokenizer(fields))
    for text in AWKWARD:
        if not any(character.isnumeric() for character in text):
            assert ours.encode(text).ids == oracle(text)["input_ids"]


# What each splitting does to one text, as llama.cpp did it when every name in the table was compared with it.
SPLIT_TEXT = "It's 12345 DON'T!  a_b\n\n x²"
SPLITS = {
    "gpt-2": ["It", "'s", " 12345", " DON", "'", "T", "!", " ", " a", "_", "b", "\n\n", " x", "²"],
    "default": ["It", "'", "s", " ", "123", "45", " DON", "'", "T", "!", " ", " a", "_", "b", "\n\n", " x", "²"],
    "smollm": [
        "It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'", "T", "!", " ", " a", "_", "b", "\n\n", " x", "²",
    ],
    "llama-bpe": ["It", "'s", " ", "123", "45", " DON", "'T", "!", " ", " a", "_b", "\n\n", " x", "²"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'T", "!", " ", " a", "_b", "\n\n", " x", "²"],
}  # fmt: skip


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_splittings(fields: dict[str, Any], pre: str) -> None:
    from tokenizers.decoders import ByteLevel

    tokenizer = load(recover_tokenizer(fields | {"tokenizer.ggml.pre": pre}))
    words = [ByteLevel().decode([word]) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(SPLIT_TEXT)]
    assert words == SPLITS[pre]


def test_whole_words_of_llama3_are_taken_before_merges(fields: dict[str, Any]) -> None:
    merges = [merge for merge in fields["tokenizer.ggml.merges"] if merge.replace(" ", "") != "Ġtruth"]
    changed = fields | {"tokenizer.ggml.merges": merges, "tokenizer.ggml.add_bos_token": False}
    assert "Ġtruth" in fields["tokenizer.ggml.tokens"]
    for pre, pieces in ("llama-bpe", 1), ("smaug-bpe", 2):
        tokenizer = load(recover_tokenizer(changed | {"tokenizer.ggml.pre": pre}))
        assert (len(tokenizer.encode(" truth").ids) == 1) == (pieces == 1)


def test_begin_and_end_tokens(fields: dict[str, Any]) -> None:
    def ids(**flags: Any) -> list[int]:
        changed = fields | {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
        return list(load(recover_tokenizer(changed)).encode("a").ids)

    (a,) = ids()
    assert ids(add_bos_token=True) == [1, a]
    assert ids(add_eos_token=True) == [a, 2]
    assert ids(add_bos_token=True, add_eos_token=True) == [1, a, 2]
    assert ids(pre="llama-bpe") == [1, a]  # llama.cpp's default for Llama 3 alone
    assert ids(pre="llama-bpe", add_bos_token=False) == [a]


def test_stop_tokens(fields: dict[str, Any]) -> None:
    def stops(**changes: Any) -> list[int]:
        keys = {key: value for key, value in changes.items() if value is not None}
        changed = {key: value for key, value in fields.items() if key != "tokenizer.chat_template"}
        changed |= {f"tokenizer.{key.replace('ggml_', 'ggml.', 1)}": value for key, value in keys.items()}
        return list(json.loads(recover_tokenizer(changed)["generation_config.json"])["eos_token_id"])

    assert stops() == [2]
    assert stops(ggml_eos_token_id=0) == [0]
    assert stops(ggml_eos_token_id=0, ggml_eot_token_id=2) == [0, 2]
    assert stops(ggml_eos_token_id=0, chat_template=CHAT_TEMPLATE) == [0, 2]
    assert stops(ggml_eos_token_id=0, chat_template="no end of turn </s>") == [0]
    assert stops(ggml_eos_token_id=0xFFFFFFFF, chat_template=CHAT_TEMPLATE) == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "mystery"}, "tokenizer.ggml.pre = 'mystery' is not supported; supported are: command-r, dbrx"),
        ({"pre": None}, "tokenizer.ggml.pre = None"),
        ({"model": "bert"}, "the tokenizer model 'bert' is not supported"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokens": [1]}, "tokenizer.ggml.tokens"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": ["zz qq"]}, "the merge 'zz qq' is not made of tokens"),
        ({"merges": ["Ġ"]}, "is not made of tokens"),
        ({"eos_token_id": 512}, "tokenizer.ggml.eos_token_id = 512 is not one of the 512 tokens"),
        ({"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id"),
        ({"model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    assert message in refusal(fields | {f"tokenizer.ggml.{key}": value for key, value in changes.items()})


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model of the kind that Llama 2 has: byte fallback, digits apart, no normalisation."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 3 + [text for text in AWKWARD if "\0" not in text]), model_writer=model,
        model_type="bpe", vocab_size=600, byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.98,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece(sentencepiece_model: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    oracle = SentencePieceProcessor(str(sentencepiece_model))
    path = tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path, vocab=610), sentencepiece=sentencepiece_model)
    tokenizer = load(GgufReader(path).tokenizer_files())
    for text in AWKWARD:
        ids = tokenizer.encode(text).ids
        assert ids == [oracle.bos_id(), *oracle.encode(text)]
        assert tokenizer.decode(ids) == oracle.decode(ids[1:])
    assert tokenizer.encode("a</s>").ids[-1] == oracle.eos_id()


def test_sentencepiece_without_the_first_space(sentencepiece_model: Path, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path, vocab=610), sentencepiece=sentencepiece_model)
    files = recover_tokenizer(dict(GgufReader(path).metadata) | {"tokenizer.ggml.add_space_prefix": False})
    tokenizer = load(files)
    assert tokenizer.encode("that", add_special_tokens=False).tokens[0][0] == "t"
    assert tokenizer.decode(tokenizer.encode(" that").ids) == " that"


def test_the_table_is_what_was_compared_with_llama_cpp() -> None:
    """327 texts for each name gave llama.cpp's ids; a new row needs that comparison first."""
    assert sorted(SPLITTINGS) == [
        "command-r", "dbrx", "deepseek-r1-qwen", "default", "falcon3", "gpt-2", "llama-bpe", "llama-v3", "llama3",
        "qwen2", "refact", "smaug-bpe", "smollm", "starcoder",
    ]  # fmt: skip


@pytest.mark.end_to_end
def test_smollm2_gives_the_ids_of_llama_cpp() -> None:
    """The ids come from llama.cpp's own server (/tokenize with parse_special) and the same file."""
    from pocketlm.export.fetch import fetch

    tokenizer = load(GgufReader(fetch("smollm2-135m")).tokenizer_files())
    golden = json.loads((Path(__file__).parent / "data" / "smollm2_tokens.json").read_text())
    assert len(golden) == 40
    for case in golden:
        assert tokenizer.encode(case["text"]).ids == case["ids"], case["text"]
