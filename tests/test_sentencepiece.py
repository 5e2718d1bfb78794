"""Folders with SentencePiece's tokenizer.model alone: the ids are SentencePiece's, and what differs is refused."""

import io
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.export.folder_tokenizer import read_tokenizer_files
from pocketlm.runtimes.tokenizer import load_tokenizer
from pocketlm.runtimes.tokenizer_check import TEXTS, check_tokenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as proto
from tiny import TEXT
from transformers import AutoTokenizer

LLAMA = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
LLAMA |= {"remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True}
KINDS = {
    "llama": LLAMA,
    "gemma": LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["\n\n", "<br>", "<unused0>"]},
    "spaces": LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁", "\n"]},
    "control": LLAMA | {"control_symbols": ["<|im_start|>", "<|im_end|>"]},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
    "unigram without bytes": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "trainer's defaults": {"normalization_rule_name": "nmt_nfkc"},
}


def trained(**options) -> bytes:
    out = io.BytesIO()
    lines = [TEXT, "The quick brown fox  jumps over\tthe lazy dog. 12 345 naïve café", "日本語 שלום"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, hard_vocab_limit=False, minloglevel=2, character_coverage=1.0,
        **({"vocab_size": 700} | options),
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module")
def models():
    return {name: trained(**options) for name, options in KINDS.items()}


def converted(folder, model: bytes, config: dict | None = None, **settings_of_folder):
    """The files of a folder that has only tokenizer.model, written into a folder of their own."""
    source, out = folder / "source", folder / "out"
    for path in (source, out):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    (source / "tokenizer.model").write_bytes(model)
    if settings_of_folder:
        (source / "tokenizer_config.json").write_text(json.dumps(settings_of_folder))
    for name, content in read_tokenizer_files(source, config or {}).items():
        (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece(kind, models, tmp_path):
    out, theirs = converted(tmp_path, models[kind]), SentencePieceProcessor(model_proto=models[kind])
    own = load_tokenizer(out)
    for text in TEXTS:
        if not text.startswith(" "):
            assert own.encode(text, special=False) == theirs.encode(text), text
    assert check_tokenizer(out, own, None) == ()
    assert own.beginning() == [theirs.bos_id()]
    sentence = "The quick brown fox"
    assert own.decode(own.encode(sentence, special=False)) == theirs.decode(theirs.encode(sentence))


@pytest.fixture(scope="module")
def pairs(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return [
        (load_tokenizer(converted(folder, models[kind])), SentencePieceProcessor(model_proto=models[kind]))
        for kind in KINDS
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_ids_of_sentencepiece(pairs, text):
    for own, theirs in pairs:
        if not text.startswith(" "):
            assert own.encode(text, special=False) == theirs.encode(text)


AWKWARD = ["</s>hi", "</s> x", "a</s>", "</s></s> b", "x<|u|>  y", "<|u|>\n z", "<sym>x<sym>", "a <sym> b", *TEXTS]


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_behind_special_tokens_are_those_of_transformers(legacy, tmp_path):
    model = trained(**LLAMA | {"user_defined_symbols": ["<sym>"]})
    size = SentencePieceProcessor(model_proto=model).vocab_size()
    decoder = {
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        str(size): {"content": "<|u|>", "special": True, "rstrip": True, "normalized": False},
    }
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "added_tokens_decoder": decoder}
    settings |= {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own = load_tokenizer(converted(tmp_path, model, **settings))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "source"), local_files_only=True)
    for text in AWKWARD:
        assert own.encode(text, special=True) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_control_pieces_stay_text_unless_asked_for(models, tmp_path):
    own = load_tokenizer(converted(tmp_path, models["control"]))
    assert "<|im_start|>" in own.special_tokens
    assert own.token_id("<|im_start|>") not in own.encode("a<|im_start|>b", special=False)
    assert own.token_id("<|im_start|>") in own.encode("a<|im_start|>b", special=True)


def test_settings_of_the_folder_count(models, tmp_path):
    size = SentencePieceProcessor(model_proto=models["llama"]).vocab_size()
    added = {"1": {"content": "<s>", "special": True}, str(size): {"content": "<|user|>", "special": True}}
    out = converted(
        tmp_path, models["llama"], {"eos_token_id": size}, add_bos_token=False, eos_token={"content": "<|user|>"},
        tokenizer_class="LlamaTokenizer", added_tokens_decoder=added,
    )  # fmt: skip
    own, written = load_tokenizer(out), json.loads((out / "tokenizer_config.json").read_text())
    assert own.token_id("<|user|>") == size
    assert own.beginning() == []
    assert (written["eos_token"], written["tokenizer_class"]) == ("<|user|>", "PreTrainedTokenizerFast")
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": size}


def test_what_cannot_be_converted_is_refused(models, tmp_path):
    for content in (b"", b"not a model", models["llama"][: len(models["llama"]) // 2]):
        with pytest.raises(InputError, match=r"tokenizer.model is not a SentencePiece model"):
            converted(tmp_path, content)
    with pytest.raises(InputError, match="neither of the kind BPE nor Unigram"):
        converted(tmp_path, trained(model_type="char"))
    with pytest.raises(InputError, match="does not write spaces as ▁ in front of words"):
        converted(tmp_path, trained(model_type="bpe", treat_whitespace_as_suffix=True))
    with pytest.raises(InputError, match=r"the added token '<x>' has the id 99999, but there is none"):
        converted(tmp_path, models["llama"], added_tokens_decoder={"99999": {"content": "<x>"}})
    with pytest.raises(InputError, match=r"the id 5 is '<0x02>' in tokenizer.model and '<x>' as added token"):
        converted(tmp_path, models["llama"], added_tokens_decoder={"5": {"content": "<x>"}})
    with pytest.raises(InputError, match="bos_token '<none>' is not a token"):
        converted(tmp_path, models["llama"], bos_token="<none>")


def test_a_conversion_that_differs_stops_the_export(models, tmp_path):
    """A damaged score changes the order of merges; the check runs on the files that an export writes."""
    out = converted(tmp_path, models["llama"])
    changed = proto.ModelProto.FromString(models["llama"])
    changed.pieces[300].score = -1e6
    changed.pieces[301].score = -1e6
    changed.pieces[302].score = -1e6
    (out / "tokenizer.model").write_bytes(changed.SerializeToString())
    with pytest.raises(InputError, match=r"cannot be converted: tokenizer.json does not give its ids: '"):
        check_tokenizer(out, load_tokenizer(out), None)
