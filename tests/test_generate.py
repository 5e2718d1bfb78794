"""Generation and chat over a session without a model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_session import FakeSession
from pocketlm.errors import InputError
from pocketlm.runtimes.chat import Chat, chat, load_chat_files, load_stop_tokens
from pocketlm.runtimes.generate import Piece, generate
from pocketlm.runtimes.sampling import Sampling
from tiny import write_tokenizer
from tiny_tokenizers import chatml_tokenizer

VOCABULARY = 512
STOP = 2
LETTERS = [chatml_tokenizer().encode(letter, special=True)[0] for letter in "abcdefgh"]


def encode(text: str) -> list[int]:
    return chatml_tokenizer().encode(text, special=True)


def answer(session: FakeSession, prompt: list[int], limit: int = 20, **options: Any) -> list[Piece]:
    sampling = options.pop("sampling", Sampling())
    return list(generate(session, chatml_tokenizer(), prompt, sampling, limit, {STOP}, **options))


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [piece.token for piece in pieces if piece.token is not None]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    session = FakeSession(VOCABULARY, 100, [*encode("Paris 😀."), STOP])
    pieces = answer(session, encode("What?"))
    assert text_of(pieces) == "Paris 😀."
    assert tokens_of(pieces) == [*encode("Paris 😀."), STOP]
    assert [piece.reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert session.cache == encode("What?") + encode("Paris 😀.")


def test_the_limit_of_new_tokens() -> None:
    pieces = answer(FakeSession(VOCABULARY, 100, encode("abcdef")), [5], limit=3)
    assert (text_of(pieces), pieces[-1].reason, pieces[-1].token) == ("abc", "length", None)
    assert len(tokens_of(pieces)) == 3


@pytest.mark.parametrize("prompt_length", [1, 7, 8])
def test_a_full_context_ends_the_answer(prompt_length: int) -> None:
    session = FakeSession(VOCABULARY, 8, loud=LETTERS)
    pieces = answer(session, [5] * prompt_length)
    assert pieces[-1].reason == "context"
    assert len(tokens_of(pieces)) == 8 - prompt_length + 1  # the last one needs no place in the cache
    assert session.position == 8


def test_characters_cut_by_the_limit_are_shown_at_the_end() -> None:
    emoji = encode("😀")
    pieces = answer(FakeSession(VOCABULARY, 100, emoji), [5], limit=len(emoji) - 1)
    assert text_of(pieces) == "\ufffd"


@pytest.mark.parametrize(
    ("prompt", "limit", "reason"),
    [([], 5, "prompt is empty"), ([1] * 9, 5, "has 9 tokens and the context holds 8"), ([1], 0, "at least 1, it is 0")],
)
def test_prompts_that_cannot_be_answered(prompt: list[int], limit: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        answer(FakeSession(VOCABULARY, 8), prompt, limit)


def test_equal_seeds_give_equal_answers() -> None:
    def tokens(seed: int) -> list[int]:
        session = FakeSession(VOCABULARY, 100)
        return tokens_of(answer(session, [5], sampling=Sampling(temperature=1.0, seed=seed)))

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_the_repetition_penalty_sees_prompt_and_answer() -> None:
    session = FakeSession(VOCABULARY, 100, loud=LETTERS)
    tokens = tokens_of(answer(session, LETTERS[:3], 5, sampling=Sampling(repetition_penalty=1e6)))
    assert len(set(tokens)) == 5
    assert set(tokens) == set(LETTERS[3:])


def test_the_cache_is_reused_where_it_is_a_beginning_of_the_prompt() -> None:
    session, cached = FakeSession(VOCABULARY, 200, loud=LETTERS), list[int]()
    first = answer(session, [5, 6, 7], 4, cached=cached)
    said = tokens_of(first)
    assert cached == session.cache == [5, 6, 7, *said[:-1]]
    longer = [5, 6, 7, *said, 8, 9]
    session.runs.clear()
    second = answer(session, longer, 4, cached=cached)
    assert session.runs[0] == 3  # the last token said, and the two new ones
    assert (second[-1].timing.cached_tokens, session.resets) == (6, 0)  # type: ignore[union-attr]
    assert tokens_of(second) == tokens_of(answer(FakeSession(VOCABULARY, 200, loud=LETTERS), longer, 4))


@pytest.mark.parametrize("prompt", [[5, 6, 7], [5, 6], [5, 6, 8, 9, 9, 9, 9, 9], [1]])
def test_the_cache_is_dropped_where_it_is_not(prompt: list[int]) -> None:
    session, cached = FakeSession(VOCABULARY, 200, loud=LETTERS), list[int]()
    answer(session, [5, 6, 7], 1, cached=cached)
    pieces = answer(session, prompt, 4, cached=cached)
    assert session.resets == 1
    assert tokens_of(pieces) == tokens_of(answer(FakeSession(VOCABULARY, 200, loud=LETTERS), prompt, 4))
    assert cached == session.cache


def test_a_session_used_before_starts_anew() -> None:
    session = FakeSession(VOCABULARY, 200, loud=LETTERS)
    session.run([1, 2, 3])
    expected = tokens_of(answer(FakeSession(VOCABULARY, 200, loud=LETTERS), [5], 4))
    assert tokens_of(answer(session, [5], 4)) == expected


def test_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each run moves by its tokens, and the reader of the pieces by a thousand."""
    now = 100.0
    session = FakeSession(VOCABULARY, 100, loud=LETTERS)
    run = session.run

    def slow_run(tokens: list[int]) -> Any:
        nonlocal now
        now += 0.5 * len(tokens)
        return run(tokens)

    monkeypatch.setattr(session, "run", slow_run)
    monkeypatch.setattr("pocketlm.runtimes.generate.perf_counter", lambda: now)
    pieces = []
    for piece in generate(session, chatml_tokenizer(), [5] * 10, Sampling(), 6, {STOP}):
        pieces.append(piece)
        now += 1000
    timing = pieces[-1].timing
    assert timing is not None
    assert (timing.prompt_tokens, timing.cached_tokens, timing.generated_tokens) == (10, 0, 6)
    assert timing.time_to_first_token_seconds == 5.0
    assert (timing.prefill_tokens_per_second, timing.decode_tokens_per_second) == (2.0, 2.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def scripted(*answers: str, context: int = 200) -> FakeSession:
    """Answers, each ended by the stop token; what runs between them is not judged."""
    script: list[int] = []
    for text in answers:
        script += [*encode(text), STOP]
    return FakeSession(VOCABULARY, context, script)


def lines(*given: str | type[BaseException]) -> Callable[[], str]:
    """A reader of these lines, with exceptions where they are given, and the end behind them."""
    rest: Iterator[str | type[BaseException]] = iter(given)

    def read() -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def talk(bundle: Path, session: FakeSession, *given: str | type[BaseException], **options: Any) -> str:
    output = io.StringIO()
    chat(bundle, lambda: session, output=output, read_line=lines(*given), **options)
    return output.getvalue().split("\n", 1)[1]  # without the help line


def prompt_tokens(bundle: Path, *messages: tuple[str, str]) -> list[int]:
    files = load_chat_files(bundle)
    given = [{"role": role, "content": content} for role, content in messages]
    return Chat(files, FakeSession(VOCABULARY, 10_000), Sampling(), 1).fit(given)[0]


def test_one_prompt(bundle: Path) -> None:
    output, session = io.StringIO(), scripted("Paris.")
    chat(bundle, lambda: session, "Capital?", "Be brief.", output=output)
    assert output.getvalue() == "Paris.\n"
    expected = prompt_tokens(bundle, ("system", "Be brief."), ("user", "Capital?"))
    assert session.cache[: session.runs[0]] == expected


def test_one_prompt_as_json(bundle: Path) -> None:
    output = io.StringIO()
    chat(bundle, lambda: scripted("é\x1b[2J"), "Capital?", output=output, as_json=True)
    found = json.loads(output.getvalue())
    assert output.getvalue().count("\n") == 1
    assert (found["text"], found["reason"]) == ("é\x1b[2J", "stop")
    assert found["tokens"] == [*encode("é\x1b[2J"), STOP]
    assert found["timing"]["generated_tokens"] == len(found["tokens"])


def test_an_answer_cannot_control_the_terminal(bundle: Path) -> None:
    output = io.StringIO()
    chat(bundle, lambda: scripted("a\x1b[2J\tb\r\n\x9bc"), "x", output=output)
    assert output.getvalue() == "a\ufffd[2J\tb\n\ufffdc\n"


def test_turns_keep_the_conversation_and_its_cache(bundle: Path) -> None:
    session = scripted("One.", "Two.")
    assert talk(bundle, session, "first", "", "second") == "One.\nTwo.\n\n"
    whole = prompt_tokens(bundle, ("user", "first"), ("assistant", "One."), ("user", "second"))
    assert session.cache[: len(whole)] == whole
    assert session.resets == 0
    before = len(prompt_tokens(bundle, ("user", "first"))) + len(encode("One."))
    assert session.runs[1 + len(encode("One."))] == len(whole) - before


def test_commands(bundle: Path) -> None:
    session = scripted("One.", "Two.")
    shown = talk(bundle, session, "first", "/reset", "/unknown x", "second", "/quit", "third")
    assert shown.startswith("One.\nThe conversation is forgotten.\n/unknown is unknown. Type a message.")
    assert shown.endswith("\nTwo.\n")
    alone = prompt_tokens(bundle, ("user", "second"))
    assert session.cache[: len(alone)] == alone


def test_reset_keeps_the_system_message(bundle: Path) -> None:
    session = scripted("One.", "Two.")
    talk(bundle, session, "first", "/reset", "second", system="Be brief.")
    whole = prompt_tokens(bundle, ("system", "Be brief."), ("user", "second"))
    assert session.cache[: len(whole)] == whole


def test_ctrl_c_stops_the_answer_and_not_the_chat(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = scripted("abcdef", "Two.")
    run, count = session.run, 0

    def interrupted(tokens: list[int]) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            session._script = [*encode("Two."), STOP]
            session.cache += [1]  # the interruption comes when the session has taken the token already
            raise KeyboardInterrupt
        return run(tokens)

    monkeypatch.setattr(session, "run", interrupted)
    assert talk(bundle, session, "first", "second") == "abc (stopped)\nTwo.\n\n"
    whole = prompt_tokens(bundle, ("user", "first"), ("assistant", "abc"), ("user", "second"))
    assert session.cache[: len(whole)] == whole
    assert session.resets == 1


def test_ctrl_c_while_typing_drops_the_line(bundle: Path) -> None:
    assert talk(bundle, scripted("One."), KeyboardInterrupt, "first") == "\n(/quit or Ctrl-D ends the chat)\nOne.\n\n"


def test_a_turn_without_an_answer_is_as_if_it_had_not_been(bundle: Path) -> None:
    session = scripted("", "Two.")
    assert talk(bundle, session, "first", "second") == "\nTwo.\n\n"
    alone = prompt_tokens(bundle, ("user", "second"))
    assert session.cache[: len(alone)] == alone


def test_the_oldest_turns_go_when_the_context_is_full(bundle: Path) -> None:
    long = "word " * 8
    session = scripted("One.", "Two.", "Three.", "Four.", context=160)
    shown = talk(bundle, session, long, long, long, "last", system="Be brief.")
    assert "(the oldest 4 messages no longer fit the context and are forgotten)\n" in shown
    assert shown.endswith("Four.\n\n")
    start = prompt_tokens(bundle, ("system", "Be brief."), ("user", long))
    assert session.cache[: len(start) - 5] == start[:-5]


def test_a_message_longer_than_the_context_is_refused_and_the_chat_goes_on(bundle: Path) -> None:
    shown = talk(bundle, scripted("One.", context=60), "z" * 100, "short")
    assert shown.startswith("(the message takes ")
    assert shown.endswith("and the context holds 60; shorten it or export with a larger --context)\nOne.\n\n")


def test_cut_answers_say_why(bundle: Path) -> None:
    session = FakeSession(VOCABULARY, 60, loud=LETTERS)
    assert talk(bundle, session, "x", max_new_tokens=3).endswith(" (cut: the limit of new tokens is reached)\n\n")
    session = FakeSession(VOCABULARY, 60, loud=LETTERS)
    assert talk(bundle, session, "x").endswith(" (cut: the context is full)\n\n")


def test_stop_tokens(bundle: Path) -> None:
    path = bundle / "generation_config.json"
    for given, expected in ((2, {2}), ([2, 0], {2, 0})):
        path.write_text(json.dumps({"eos_token_id": given}))
        assert load_stop_tokens(bundle) == expected
    for wrong in (None, [], "2", [True], {}):
        path.write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(InputError, match="eos_token_id must be a token id or a list of them"):
            load_stop_tokens(bundle)


def test_nothing_is_opened_for_bad_input(bundle: Path) -> None:
    def never() -> FakeSession:
        raise AssertionError("opened")

    with pytest.raises(InputError, match="give it with --prompt"):
        chat(bundle, never, as_json=True)
    with pytest.raises(InputError, match="the prompt is empty"):
        chat(bundle, never, " ")
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        chat(bundle, never, "x")


def test_chatting_imports_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "onnxruntime", "tokenizers", "jinja2")
    program = (
        "import sys, pocketlm.runtimes.chat, pocketlm.runtimes.chat_turns\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
