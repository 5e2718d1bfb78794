"""Templates taken apart: the pieces give the template's text, or there is a reason why not."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.runtimes.chat_template import ChatTemplate
from pocketlm.runtimes.chat_turns import assemble, chat_turns, segments
from transcripts import GOLDEN, NAMES, conversation, template_entry

NOW = datetime(2025, 1, 31)
VECTORS = json.loads((GOLDEN / "chat_turns.json").read_text(encoding="utf-8"))


@cache
def template(name: str) -> ChatTemplate:
    entry = template_entry(name)
    return ChatTemplate(entry["template"], entry["special_tokens"])


@cache
def turns(name: str) -> Any:
    found, reason = chat_turns(template(name).render)
    assert found is not None, reason
    return found


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_pieces_give_the_templates_text(name: str, data: st.DataObject) -> None:
    visible = st.text(st.sampled_from("ab \n\t\u00a0<|>/[]{}%think_imedSY😀"), min_size=1).filter(str.strip)
    system = "s" if "start system" in turns(name)["between"] and data.draw(st.booleans()) else ""
    roles = system + "ua" * data.draw(st.integers(0, 3)) + "u"
    messages = conversation(roles, *(data.draw(visible) for _ in roles))
    assert assemble(turns(name), messages, NOW) == template(name).render(messages, strftime_now=NOW.strftime)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_survive_json_and_match_the_shared_vectors(name: str) -> None:
    """The vectors are what apps are tested with; `make golden` writes them."""
    shared = next(entry for entry in VECTORS if entry["name"] == name)
    assert json.loads(json.dumps(turns(name))) == shared["turns"]
    assert shared["conversations"]
    for case in shared["conversations"]:
        now = datetime.fromisoformat(case["date"])
        assert assemble(shared["turns"], case["messages"], now) == case["text"]
        assert template(name).render(case["messages"], strftime_now=now.strftime) == case["text"]


def test_what_is_told_about_system_messages() -> None:
    assert turns("SmolLM2")["default_system"] == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert turns("ChatML")["default_system"] is None
    assert turns("Llama 3.2")["dates"] == ["%d %b %Y"]
    assert turns("Qwen 3")["cut"] == {"behind": "</think>", "trim_left": "\n"}
    assert "System role not supported" in turns("Gemma 2")["system_reason"]
    with pytest.raises(InputError, match=r"takes no system message: .*System role not supported"):
        assemble(turns("Gemma 2"), conversation("su", "Be brief.", "Hello"))


def test_control_tokens_count_only_in_pieces() -> None:
    parts = list(segments(turns("ChatML"), conversation("u", "<|im_end|>")))
    assert [text for text, literal in parts if not literal] == ["<|im_end|>"]
    assert "".join(text for text, _ in parts) == template("ChatML").render(conversation("u", "<|im_end|>"))


@pytest.mark.parametrize("roles", ["a", "uu", "ua", "us", "sa", "uaa"])
def test_conversations_that_the_pieces_do_not_cover(roles: str) -> None:
    with pytest.raises(InputError, match="cannot follow"):
        assemble(turns("ChatML"), conversation(roles, *roles))


def test_empty_messages() -> None:
    for content in ("", " \n\u2003"):
        with pytest.raises(InputError, match="a message of the user is empty; leave it out"):
            assemble(turns("ChatML"), conversation("u", content))


LOOP = "{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (LOOP.replace("message.content", "message.content | upper"), "does not write each message once"),
        (LOOP + "{{ messages[0].content }}", "does not write each message once"),
        ("{{ messages[-1].content }}", "does not write each message once"),
        (LOOP.replace("message.content", "(message.content | replace(' ', ''))"), "white space .* in a way of its own"),
        (LOOP.replace("message.content", "(message.content | replace('b', 'c'))"), "more than neighbouring roles"),
        (LOOP + "{{ messages | length }}", "more than neighbouring roles"),
        (LOOP + "{{ strftime_now('%H:%M') }}", "writes the time as '%H:%M'"),
        (LOOP + "{{ 'x' if '2' in strftime_now('%Y') else 'y' }}", "more than neighbouring roles"),
        (LOOP + "{{ raise_exception('no') }}", "fails on this conversation: no"),
        (LOOP.replace("message.content", "(message.content.split('</think>')[0])"), "more than neighbouring roles"),
        (LOOP + "{{ 'long' if messages | length > 4 }}", "more than neighbouring roles"),
    ],
)
def test_templates_that_cannot_be_taken_apart(source: str, reason: str) -> None:
    found, why = chat_turns(ChatTemplate(source, {}).render)
    assert found is None
    assert re.search(reason, why), why
    assert "\n" not in why
