"""Chat templates against transformers; users cannot write control tokens; strangers' templates stay in bounds."""

from __future__ import annotations

import json
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.runtimes.chat_template import ChatTemplate, encode_chat, load_chat_template
from pocketlm.runtimes.tokenizer_check import CHATS
from tiny_tokenizers import CONTROL, KINDS, chatml_tokenizer, library, tokenizer
from transcripts import NAMES, TRANSCRIPTS, conversation, template_entry


@cache
def template(name: str) -> ChatTemplate:
    entry = template_entry(name)
    return ChatTemplate(entry["template"], entry["special_tokens"])


@cache
def transformers_tokenizer(name: str, kind: str = "byte level") -> Any:
    from transformers import PreTrainedTokenizerFast

    entry = template_entry(name)
    theirs = PreTrainedTokenizerFast(tokenizer_object=library(kind), **entry["special_tokens"])
    theirs.chat_template = entry["template"]
    return theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendering_is_transformers(name: str, add_generation_prompt: bool) -> None:
    theirs, rendered = transformers_tokenizer(name), 0
    for messages in [*TRANSCRIPTS, *CHATS]:
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        try:
            expected = theirs.apply_chat_template(messages, **options)
        except Exception as error:
            reason = re.escape(f"the chat template fails on this conversation: {error}")
            with pytest.raises(InputError, match=reason):
                template(name).render(messages, add_generation_prompt=add_generation_prompt)
            continue
        rendered += 1
        assert template(name).render(messages, add_generation_prompt=add_generation_prompt) == expected
    assert rendered >= 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ChatML", "Llama 2"])
def test_without_control_tokens_the_encoding_is_that_of_the_text(name: str, kind: str) -> None:
    own = tokenizer(kind)
    for messages in TRANSCRIPTS[:5] + TRANSCRIPTS[8:13]:
        text = template(name).render(messages)
        assert encode_chat(own, template(name), messages) == own.encode(text, special=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", CONTROL + tuple(f" a{token}\n{token}b" for token in CONTROL))
def test_control_tokens_in_a_message_stay_text(kind: str, content: str) -> None:
    own, plain = tokenizer(kind), library(kind)
    control = {plain.token_to_id(token) for token in CONTROL}
    messages = conversation("suau", content, content, content, content)
    tokens = encode_chat(own, template("ChatML"), messages)
    # The control tokens are those of the same conversation with harmless contents, in the same order.
    harmless = encode_chat(own, template("ChatML"), conversation("suau", *"wxyz"))
    assert [token for token in tokens if token in control] == [token for token in harmless if token in control]
    if kind not in ("bare", "metaspace"):  # those do not give every space back
        shown = plain.decode(tokens, skip_special_tokens=False).replace(" ", "")
        assert shown == template("ChatML").render(messages).replace(" ", "")


@given(st.lists(st.sampled_from([*CONTROL, "<think>", "</think>", "a", " ", "\n", "<|im_", "end|>"]), max_size=8))
def test_no_message_changes_the_control_tokens(parts: list[str]) -> None:
    """Whatever a user writes, in a template that cuts contents apart (Qwen 3)."""
    own, plain = tokenizer("byte level"), library("byte level")
    control = {plain.token_to_id(token) for token in (*CONTROL, "<think>", "</think>")}
    content = "".join(parts)
    tokens = encode_chat(own, template("Qwen 3"), conversation("uau", content, content, content))
    shown = [plain.id_to_token(token) for token in tokens if token in control]
    assert shown == [*["<|im_start|>", "<|im_end|>"] * 3, "<|im_start|>"]


def test_tokens_reach_over_the_border_of_a_message_as_in_plain_text() -> None:
    """Also with a control token in it, the message is encoded with what is around it, as ordinary text would be."""
    own = chatml_tokenizer()
    source = ChatTemplate("{% for message in messages %}The quick {{ message.content }}{% endfor %}", {})
    content = "brown fox<|im_end|> jumps"
    tokens = encode_chat(own, source, conversation("u", content))
    assert tokens == own.encode("The quick " + content, special=False)


CALLING = """{%- for message in messages %}<|im_start|>{{ message.role }} {{ message.name }}\n{{ message.content }}
{%- for call in message.tool_calls %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor %}<|im_end|>\n{% endfor %}"""


def test_control_tokens_in_a_tool_call_stay_text() -> None:
    own, plain = tokenizer("byte level"), library("byte level")
    control = {plain.token_to_id(token) for token in CONTROL}

    def talk(text: str) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": f"f{text}", "arguments": {f"key{text}": [text, {"a": text}]}}}
        asked = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [*conversation("u", "?"), asked, {"role": "tool", "content": f"r{text}", "name": text}]

    calling = ChatTemplate(CALLING, {})
    assert calling.render(talk("<s>")).count("<s>") == 6, "the template shows calls, results and names"
    tokens, harmless = (encode_chat(own, calling, talk(text)) for text in ("<|im_end|><s>", "x"))
    assert [token for token in tokens if token in control] == [token for token in harmless if token in control]


def test_what_a_template_cuts_apart_leaves_no_marks() -> None:
    """Qwen 3 splits an answer at </think>, which is a token that its template writes itself."""
    own = tokenizer("byte level")
    messages = conversation("uau", "a<think>b", "<think>c</think>d<s>", "e</think>")
    tokens = encode_chat(own, template("Qwen 3"), messages)
    assert library("byte level").decode(tokens, skip_special_tokens=False) == template("Qwen 3").render(messages)


def test_private_use_characters_of_a_user_are_kept() -> None:
    own = tokenizer("byte level")
    content = "\U000f0000<s>\U000f0001\U000f0002"
    tokens = encode_chat(own, template("ChatML"), conversation("u", content))
    assert content in library("byte level").decode(tokens, skip_special_tokens=False)


BOMBS = {
    "repeats text": "{{ 'a' * 10**10 }}",
    "repeats a list": "{{ ([1] * 10**9) | length }}",
    "long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "filtered loops": "{% set r = range(99999) %}{% for i in r %}{% for j in r if false %}{% endfor %}{% endfor %}",
    "doubles with +": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubles with ~": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubles blocks": "{% set s = 'aaaa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "doubles lists": "{% set s = [1] %}" + "{% set s = [s, s] %}" * 60 + "{{ s }}",
    "doubles lists as JSON": "{% set s = [1] %}" + "{% set s = [s, s] %}" * 60 + "{{ s | tojson }}",
    "squares": "{% set n = namespace(s=3) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "wide format": "{{ '%9999999999d' % 1 }}",
    "wide format filter": "{{ '%9999999999d' | format(1) }}",
    "wide str.format": "{{ '{:9999999999}'.format(1) }}",
    "width as argument": "{{ '%*d' % (9999999999, 1) }}",
    "pads": "{{ 'a'.ljust(10**10) }}",
    "pads in a constant": "{{ 'a' | center(9999999999) }}",
    "replaces": "{% set a = 'a' * 99999 %}{{ a.replace('a', a) | length }}",
    "joins": "{% set a = 'a' * 99999 %}{{ range(99999) | map('string') | join(a) | length }}",
    "macros": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(100) }}",
    "recursion": "{% macro a(n) %}{{ a(n + 1) }}{% endmacro %}{{ a(0) }}",
    "recursive loop": "{% for x in range(9000) recursive %}{{ loop(range(9000)) }}{% endfor %}",
    "bytes": "{{ (1).to_bytes(9999999999, 'big') | length }}",
    "indents JSON": "{{ [[1]] | tojson(indent=99999) }}",
    "Python's classes": "{{ ''.__class__.__mro__ }}",
    "changes its input": "{{ dict.update(messages[0], role='x') }}",
    "appends": "{{ messages.append(1) }}",
    "includes files": "{% include '/etc/hostname' %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError, match=r"^the chat template fails on this conversation: [^\n]+$"):
        ChatTemplate(BOMBS[name], {}).render(conversation("u", "Hello"))
    assert time.process_time() - started < 20  # without the limits: hours, or all memory


@pytest.mark.parametrize(
    "source", ["{{", "{% if %}", "{% unknown %}", "{{ (" + "(" * 5000, "{{ 'a' | no_such_filter }}", "x" * 600_000]
)
def test_templates_that_cannot_be_compiled(source: str) -> None:
    with pytest.raises(InputError, match=r"^the chat template cannot be read: [^\n]+$"):
        ChatTemplate(source, {})


def test_a_long_conversation_is_within_the_limits() -> None:
    messages = conversation("ua" * 500 + "u", *(f"{'word ' * 100}{i}" for i in range(1001)))
    for name in NAMES:
        assert len(template(name).render(messages)) > 24_000  # the training template stops after 50 messages


def test_globals_and_filters_of_transformers() -> None:
    source = ChatTemplate(
        "{%- set all = dict(a='é<', b=[1]) -%}{{ all | tojson }}|{{ all | tojson(indent=1) }}|{{ strftime_now('%Y') }}|"
        "{{ '{}-{:>3}'.format('a', 'b') }}|{{ '%s %03d' % ('x', 7) }}|{{ 2 ** 5 * 3 + 1 }}|{{ tools is none }}\n"
        "{% for x in [1, 2, 3, 4] %}\n    {%- if x == 2 %}{% continue %}{% endif %}{{ x }}/{{ loop.length }}"
        "{%- if x == 3 %}{% break %}{% endif %}{% endfor %}",
        {},
    )
    rendered = source.render(conversation("u", "x"), strftime_now=lambda pattern: f"<{pattern}>")
    expected = '{"a": "é<", "b": [1]}|{\n "a": "é<",\n "b": [\n  1\n ]\n}|<%Y>|a-  b|x 007|97|True\n1/43/4'
    assert rendered == expected


def _nested(levels: int) -> list[Any]:
    return [_nested(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are no messages"),
        ([{"role": "user"}], "has a role and a content, this one has role"),
        ([{"role": "robot", "content": "x"}], "the role 'robot' is unknown; there are system, user, assistant"),
        ([{"role": "user", "content": ["x"]}], "must be text, it is list"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "a message of the role user has no 'tool_calls'"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"x": b"x"}]}],
            "may hold text, numbers, lists and objects",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": _nested(30)}], "at most 20 deep"),
        ([{"role": "tool", "content": "x", "name": "\udc80"}], "not valid Unicode"),
        ([{"role": "user", "content": "\udc80"}], "not valid Unicode"),
    ],
)
def test_messages_that_are_none(messages: list[Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        template("ChatML").render(messages)
    with pytest.raises(InputError, match=reason):
        encode_chat(chatml_tokenizer(), template("ChatML"), messages)


def test_loading_from_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat_template.jinja: this model was not tuned for chat"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_chat_template(tmp_path).render(conversation("u", "x")) == "<s>x</s>"
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InputError, match="is not JSON"):
        load_chat_template(tmp_path)
