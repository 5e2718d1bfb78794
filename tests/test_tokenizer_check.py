"""Tokenizer and template against transformers' and ExecuTorch's own, on texts that go wrong easily."""

import json
import shutil

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.chat_template import load_chat_template
from pocketlm.runtimes.tokenizer import Tokenizer, load_tokenizer
from pocketlm.runtimes.tokenizer_check import CHATS, TEXTS, check_tokenizer, executorch_notes


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """The files of a tokenizer, to be changed."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder / name, tmp_path / name)
    return tmp_path


def test_a_sound_tokenizer_is_what_transformers_and_executorch_have(folder):
    assert len(CHATS) >= 20
    assert {message["role"] for messages in CHATS for message in messages} == {"system", "user", "assistant", "tool"}
    assert check_tokenizer(folder, load_tokenizer(folder), load_chat_template(folder)) == ()
    assert executorch_notes(folder, load_tokenizer(folder)) == ()


def test_the_first_text_with_other_ids_is_shown(folder):
    own = load_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"does not give the ids that transformers gives: 'e.* a.*' is \["):
        check_tokenizer(folder, own, None)
    (note,) = executorch_notes(folder, own)
    assert f" of {len(TEXTS)} awkward texts, first: '" in note


def test_another_prompt_is_shown(folder):
    template = load_chat_template(folder)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", "assistant: "))
    with pytest.raises(InputError, match=r"does not write what transformers writes: .*assistant.n' and not "):
        check_tokenizer(folder, load_tokenizer(folder), template)


def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused(folder, monkeypatch):
    own = load_tokenizer(folder)
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, special: self._library.encode(text).ids)
    with pytest.raises(InputError, match=r"makes a control token of .* although a user wrote it"):
        check_tokenizer(folder, own, None)


def test_what_cannot_be_compared_is_said(folder, monkeypatch):
    monkeypatch.setattr("pocketlm.runtimes.tokenizer_check.find_spec", lambda name: None)
    assert check_tokenizer(folder, load_tokenizer(folder), None) == (
        "tokenizer and template were not compared with transformers': it is not installed",
    )
    assert "pytorch-tokenizers is not installed" in executorch_notes(folder, load_tokenizer(folder))[0]
    monkeypatch.undo()
    (folder / "broken").mkdir()
    (folder / "broken" / "tokenizer.json").write_text("{}")
    assert "cannot read tokenizer.json" in executorch_notes(folder / "broken", load_tokenizer(folder))[0]
