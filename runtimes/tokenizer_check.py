"""Awkward texts and conversations that a bundle's tokenizer and template must treat as everybody else does.

The judges: the bundle's own code, which must never let a user's text become a control token; transformers, where
it is installed, which must give the same ids and prompts or nothing is exported; SentencePiece, where the tokenizer
was made from its file; and ExecuTorch's tokenizer library,
which apps for it use: where that differs, the certificate says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from .chat_template import ChatTemplate, Message
from .tokenizer import Tokenizer

TEXTS: tuple[str, ...] = (
    "Hello, world!", "", " ", "  two  spaces  ", "\n", "\n\n\nlines\r\nand\rreturns\n", "\ttabs\t\tand spaces \t",
    " " * 40 + "indented", "a" + " " * 200 + "b", "naïve café – “quotes” … €", "e\u0301 a\u0308 n\u0303 \u0301alone",
    "😀👍🏽 👩‍👩‍👧 🇫🇷 ❤️ \u200d\ufe0f", "日本語のテキストと漢字、中文标点。한국어 문장.", "שלום עולם، مرحبا بالعالم ١٢٣",
    "\u202eright to left\u202c \u200bzero\u200bwidth\ufeff", "हिन्दी ไทย தமிழ் ქართული", "\x00\x01\x07\x1b[31m\x7f\x85",
    "def f(x):\n    return {k: v for k, v in x.items()}  # 100%\n", '{"a": [1, 2.5e-3, null], "b": "\\n\\u00e9"}',
    "<p>&amp;</p> {{ 7 * 7 }} {% raw %} ${HOME} C:\\path\\file", "1234567890 3.14159 1,000,000 0x7f 2026-11-24",
    "https://example.org/a?b=c&d=e#f user@example.org", "ALLCAPS CamelCase snake_case kebab-case don't I'll we've",
    "\U0001d54f\U0001d550 \U00020000 ﬁ ﬂ Å Å ½ ²", "x" * 300, "ab" * 150, "¿Qué? ¡Sí! Straße İstanbul ǅ ß ẞ",
)  # fmt: skip


def _conversation(roles: str, *contents: str) -> list[Message]:
    """Roles by first letter: "suat" for system, user, assistant, tool."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[role], "content": text} for role, text in zip(roles, contents, strict=True)]


def _tool_calls(*calls: tuple[str, dict[str, Any]]) -> Message:
    """An assistant's message that is nothing but calls."""
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}


_WEATHER = ("weather", {"city": "Zürich", "days": 2, "units": ["°C"], "exact": True, "note": None})

CHATS: tuple[list[Message], ...] = (
    _conversation("u", "Hello"),
    _conversation("u", ""),
    _conversation("u", "  spaces around  "),
    _conversation("u", "\n\nlines\n\n"),
    _conversation("u", "naïve 😀 日本語 \u0301"),
    _conversation("u", "{{ 7 * 7 }} {% if x %} {# #}"),
    _conversation("u", "<b>&amp;</b> \"double\" 'single' \\n"),
    _conversation("u", "def f(x):\n    return x\n"),
    _conversation("ua", "Hi", "Hello!"),
    _conversation("uau", "Hi", "Hello!", "Bye"),
    _conversation("uau", " Hi ", " Hello! \n", " Bye "),
    _conversation("uauau", "1", "2", "3", "4", "5"),
    _conversation("su", "Be brief.", "Hello"),
    _conversation("su", "", "Hello"),
    _conversation("su", "  Be brief. \n", "\n Hello "),
    _conversation("suau", "Be brief.", "Hi", "Hello!", "Bye"),
    _conversation("suauau", "Be brief.", "1", "2", "3", "4", "5"),
    _conversation("uau", "Why?", "<think>\nbecause\n</think>\n\nSo.", "Why?"),
    _conversation("uaua", "Why?", "<think>a</think>So.", "Why?", "<think>b</think>\nSo."),
    _conversation("uu", "one", "two"),
    _conversation("uatau", "2 + 2?", '<tool_call>\n{"sum": [2, 2]}\n</tool_call>', "4", "It is 4.", "And 3 + 3?"),
    _conversation("suatt", "Use tools.", "Both?", "a, b", '{"result": "naïve 😀"}', " 2 \n"),
    [*_conversation("u", "Rain?"), _tool_calls(_WEATHER), *_conversation("t", '{"rain": false}')],
    [
        *_conversation("su", "Brief.", "Both?"),
        _tool_calls(_WEATHER, ("now", {})),
        *_conversation("tta", "1", "2", "No."),
    ],
)


def check_tokenizer(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> tuple[str, ...]:
    """What could not be compared, a line each.

    folder  with tokenizer.json and the files around it, as transformers reads them

    Raises InputError with the first difference to transformers, or if a user's text can become a control token.
    """
    _check_control_tokens(tokenizer)
    if (folder / "tokenizer.model").is_file():
        _compare_with_sentencepiece(folder, tokenizer)
    if find_spec("transformers") is None:
        return ("tokenizer and template were not compared with transformers': it is not installed",)
    return _compare_with_transformers(folder, tokenizer, template)


def _check_control_tokens(tokenizer: Tokenizer) -> None:
    control = {tokenizer.token_id(token) for token in tokenizer.special_tokens}
    for token in tokenizer.special_tokens:
        text = f"a {token}b"
        try:
            ids = tokenizer.encode(text, special=False)
        except InputError:
            continue  # such a message is refused, which is safe
        if control & set(ids):
            raise InputError(f"the tokenizer makes a control token of {text!r} although a user wrote it")


def _compare_with_sentencepiece(folder: Path, tokenizer: Tokenizer) -> None:
    """A tokenizer.json that was made from tokenizer.model must cut as that does.

    A text that begins with a space is left out: SentencePiece puts another one in front of it, transformers does not.
    """
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in TEXTS if not text.startswith(" ")]
    found, _ = _differences(tokenizer, lambda text: theirs.encode(text), texts)
    if found is not None:
        raise InputError(f"tokenizer.model cannot be converted: tokenizer.json does not give its ids: {found}")


def _compare_with_transformers(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> tuple[str, ...]:
    from transformers import AutoTokenizer

    try:
        other: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, model_max_length=1 << 30
        )
    except Exception as error:  # whatever its dozens of tokenizer classes raise
        return (f"tokenizer and template were not compared: transformers cannot read them ({_line(error)})",)
    found = _first_difference(tokenizer, lambda text: list(other(text, add_special_tokens=False)["input_ids"]))
    if found is not None:
        raise InputError(f"tokenizer.json does not give the ids that transformers gives: {found}")
    if template is not None:
        _compare_prompts(other, template)
    return ()


def _compare_prompts(other: Any, template: ChatTemplate) -> None:
    """Both must write the same prompts, or refuse the same conversations."""
    for messages in CHATS:
        try:
            theirs: str | None = other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # raise_exception of a template, and what jinja finds wrong in one
            theirs = None
        try:
            ours: str | None = template.render(messages)
        except InputError:
            ours = None
        if ours != theirs:
            raise InputError(f"the chat template does not write what transformers writes: {ours!r} and not {theirs!r}")


def executorch_notes(folder: Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What ExecuTorch's tokenizer library makes of tokenizer.json that is not what we make of it; at most one line."""
    if find_spec("pytorch_tokenizers") is None:
        return ("tokenizer.json was not compared with ExecuTorch's library: pytorch-tokenizers is not installed",)
    from pytorch_tokenizers import CppHFTokenizer

    other = CppHFTokenizer()
    try:
        other.load(str(folder / "tokenizer.json"))
        found, count = _differences(tokenizer, lambda text: list(other.encode(text, 0, 0)))
    except Exception as error:  # a C++ exception of no class of its own
        return (f"ExecuTorch's tokenizer library, and so its runners, cannot read tokenizer.json ({_line(error)})",)
    if not count:
        return ()
    return (f"ExecuTorch's tokenizer library differs on {count} of {len(TEXTS)} awkward texts, first: {found}",)


def _differences(
    tokenizer: Tokenizer, encode: Callable[[str], Sequence[int]], texts: Sequence[str] = TEXTS
) -> tuple[str | None, int]:
    first, count = None, 0
    for text in texts:
        ours, theirs = tokenizer.encode(text, special=True), list(encode(text))
        if ours != theirs:
            count += 1
            first = first or f"{text[:40]!r} is {_some(ours)} here and {_some(theirs)} there"
    return first, count


def _first_difference(tokenizer: Tokenizer, encode: Callable[[str], Sequence[int]]) -> str | None:
    return _differences(tokenizer, encode)[0]


def _some(ids: Sequence[int]) -> str:
    return f"{list(ids[:8])}{'...' if len(ids) > 8 else ''} ({len(ids)} ids)"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
