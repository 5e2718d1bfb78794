"""Prompt lookup: guesses change how many calls an answer takes, and nothing else."""

import random
from functools import cache

import numpy as np
import pytest
from fake_session import FakeSession
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes.cli_shared import opener
from pocketlm.runtimes.generate import generate
from pocketlm.runtimes.lookup import find_guesses, same_in_any_call, usable
from pocketlm.runtimes.onnx_rows import graph_with_rows
from pocketlm.runtimes.onnx_session import OnnxSession, chunks
from pocketlm.runtimes.sampling import Sampling
from test_onnx import lower
from tiny import tiny_llama
from tiny_families import CONTEXT, NAMES, artifact
from tiny_tokenizers import chatml_tokenizer


class FakeRows(FakeSession):
    """FakeSession's logits, several at once; ``bias`` adds what depends on the number of tokens in a call."""

    bias = 0.0

    def truncate(self, position):
        assert 0 <= position <= len(self.cache)
        del self.cache[position:]

    def run_rows(self, tokens):
        count = len(self.runs)
        rows = np.stack([self.run([token]).copy() for token in tokens])
        self.runs[count:] = [len(tokens)]
        return rows + np.float32(self.bias * len(tokens))


def by_hand(tokens, most, longest=3):
    """find_guesses, told as it is defined."""
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        places = [i for i in range(len(tokens) - length) if tokens[i : i + length] == tokens[-length:]]
        if places:
            period = tokens[places[-1] + length :]
            return [period[i % len(period)] for i in range(most if length > 1 else min(most, 1))]
    return []


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 9))
def test_guesses_are_what_followed_the_longest_ngram_the_last_time(tokens, most):
    assert find_guesses(np.array(tokens, np.int64), most) == by_hand(tokens, most)


def test_guesses_by_example():
    text = np.array([5, 1, 2, 3, 9, 8, 1, 2, 3], np.int64)
    assert find_guesses(text, 4) == [9, 8, 1, 2]
    assert find_guesses(np.array([7, 7, 7], np.int64), 3) == [7, 7, 7]
    assert find_guesses(np.array([1, 2, 3], np.int64), 3) == []


def answer(session, prompt, limit, lookup, sampling, cached=None, stop=()):
    """Everything that an answer gives but its times: pieces, observed tokens and logits, and the timing."""
    seen = []
    pieces = list(
        generate(
            session,
            chatml_tokenizer(),
            prompt,
            sampling,
            limit,
            stop,
            cached,
            lambda token, logits: seen.append((token, logits.tobytes())),
            lookup,
        )
    )
    return [(piece.token, piece.text, piece.reason) for piece in pieces], seen, pieces[-1].timing


sampled = st.sampled_from(
    [Sampling(), Sampling(repetition_penalty=1.3), Sampling(0.7, seed=3), Sampling(1.5, top_k=20, top_p=0.9, seed=8)]
)


@given(
    st.lists(st.integers(3, 8), min_size=1, max_size=12), st.integers(0, 9), st.integers(1, 40), sampled, st.booleans()
)
@settings(max_examples=60)
def test_guesses_change_nothing_of_a_session_that_repeats_itself(prompt, lookup, limit, sampling, stops):
    """Few loud tokens, so that guesses hit; limits, a small context and stop tokens inside of runs of right guesses."""
    stop = {5} if stops else set()
    found = []
    for most in (None, lookup):
        session, cached = FakeRows(512, 24, loud=(3, 4, 5)), []
        first = answer(session, prompt, limit, most, sampling, cached, stop)
        assert session.cache == cached, "what was only guessed is still in the cache"
        again = [*prompt, *(token for token, _, _ in first[0] if token is not None)][:20]
        found.append((first[:2], answer(session, [*again, 3], limit, most, sampling, cached, stop)[:2], cached))
    assert found[0] == found[1]


def test_right_guesses_save_calls_and_wrong_ones_stop():
    prompt = [3, 4, 5, 6, 7, 8, 9, 10] * 2
    script = [3, 4, 5, 6, 7, 8, 9, 10] * 4
    session = FakeRows(512, 200)
    session.run = lambda tokens: scripted_run(session, tokens, prompt + script)
    _, _, timing = answer(session, prompt, 25, 7, Sampling())
    assert (timing.generated_tokens, timing.decode_calls, timing.accepted_tokens) == (25, 3, 21)
    assert timing.accepted_per_call == 7
    noise = FakeRows(512, 200, loud=range(3, 9))
    _, _, timing = answer(noise, [3, 4] * 8, 100, 7, Sampling())
    assert timing.guessed_tokens < 2 * timing.decode_calls, "wrong guesses do not make it guess less"


def scripted_run(session, tokens, script):
    """The token that stands next in ``script``."""
    session.runs.append(len(tokens))
    session.cache.extend(tokens)
    logits = np.zeros(session.vocab_size, np.float32)
    logits[script[len(session.cache)]] = 1
    return logits


def test_an_abandoned_answer_leaves_no_guesses_behind():
    session, cached = FakeRows(512, 200, loud=(3, 4)), []
    pieces = generate(session, chatml_tokenizer(), [3, 4] * 6, Sampling(), 50, (), cached, lookup=7)
    for _ in range(5):
        next(pieces)
    pieces.close()
    assert session.cache == cached == ([3, 4] * 6 + cached[12:])


def test_a_session_whose_logits_depend_on_the_call_is_found_out():
    said = []
    session = FakeRows(512, 40)
    assert usable(session, 7, said.append) == 7
    session.bias = 1e-3
    assert usable(session, 7, said.append) is None
    assert len(said) == 1
    assert said[0].startswith("lookup is off: a token's logits depend")
    assert usable(session, None, said.append) is None
    assert len(said) == 1


@cache
def rows_session(name, recipe="int4-rtn", threads=2):
    folder = artifact(name, "onnx", recipe)
    return OnnxSession(folder, threads, graph_with_rows(folder))


def in_random_calls(session, tokens, source):
    """Logits of ``tokens`` (tokens, vocabulary), run in calls of 1 to 16, some of them taken back and run again."""
    session.reset()
    rows = np.empty((0, session.vocab_size), np.float32)
    while len(rows) < len(tokens):
        part = tokens[len(rows) : len(rows) + source.randrange(1, 17)]
        found = session.run_rows(part) if source.random() < 0.8 else session.run(part[:1])[None]
        rows = np.concatenate([rows, found])[: session.position]
        rows = rows[: len(rows) - source.choice((0, 0, 1, min(3, len(rows) - 1)))] if len(rows) > 1 else rows
        if len(rows) < session.position:
            session.truncate(len(rows))
    return rows


@pytest.mark.parametrize("recipe", ["int4-rtn", "int8-rtn", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_same_bits_however_tokens_are_divided_into_calls(name, recipe):
    """Up to the last token of the context, and past sliding windows (8 tokens)."""
    session, source = rows_session(name, recipe), random.Random(name)
    assert same_in_any_call(session, 15)
    tokens = [source.randrange(3, 320) for _ in range(CONTEXT)]
    session.reset()
    one_by_one = np.stack([session.run([token]).copy() for token in tokens])
    for _ in range(3):
        assert np.array_equal(in_random_calls(session, tokens, source), one_by_one)


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """Heads of 256 columns, which ONNX Runtime sums in blocks; 8 bits in blocks of 128, whose rows go two by two."""
    folder = tmp_path_factory.mktemp("wide")
    lower(
        tiny_llama(folder / "m", hidden=256, head_dim=256, context=320),
        folder / "o",
        load_recipe("int4-rtn"),
        context=320,
    )
    return folder / "o"


def test_wide_heads_keep_their_bits_where_sums_are_cut(long_folder):
    session, source = OnnxSession(long_folder, 2, graph_with_rows(long_folder)), random.Random(0)
    tokens = [source.randrange(3, 512) for _ in range(320)]
    one_by_one = np.stack([session.run([token]).copy() for token in tokens])
    for _ in range(4):
        assert np.array_equal(in_random_calls(session, tokens, source), one_by_one)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "mixtral", "gpt2"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.3, seed=5)])
def test_guesses_change_nothing_of_a_model(name, sampling):
    """Two turns, up to the end of the context; each of them says the prompt's words again and again."""
    session, found = rows_session(name), []
    for most in (0, 1, 7, 15):
        cached = []
        first = answer(session, [3, 4, 5, 6] * 4, 20, most, sampling, cached)
        more = [*cached, 7, 3, 4, 5, 6]
        second = answer(session, more, 40, most, sampling, cached)
        assert second[0][-1][2] == "context"
        assert len(cached) == CONTEXT
        found.append((first[:2], second[:2]))
    assert all(each == found[0] for each in found)


def test_each_right_guess_saves_a_call_of_a_model():
    folder = artifact("qwen2", "onnx", "int4-rtn", 256)
    session = OnnxSession(folder, 2, graph_with_rows(folder))
    slow, fast = (answer(session, [3, 4, 5], 240, most, Sampling()) for most in (0, 7))
    assert slow[:2] == fast[:2]
    assert (slow[2].decode_calls, slow[2].accepted_per_call) == (239, 0)
    assert fast[2].accepted_tokens > 30
    assert fast[2].decode_calls == 239 - fast[2].accepted_tokens


def test_a_prompt_in_chunks_gives_the_same_logits(tmp_path):
    lower(tiny_llama(tmp_path / "m", context=1100), tmp_path / "o", load_recipe("int4-rtn"), context=1100)
    session = OnnxSession(tmp_path / "o")
    tokens = np.random.default_rng(0).integers(3, 512, 1026).tolist()
    at_once = session.run_all(tokens).copy()[-1]
    session.reset()
    assert np.array_equal(session.run(tokens), at_once)
    assert session.position == 1026


def test_chunks():
    assert [len(part) for part in chunks(range(1024), 512)] == [512, 512]
    assert [len(part) for part in chunks(range(1025), 512)] == [512, 511, 2]
    assert [len(part) for part in chunks(range(513), 512)] == [511, 2]
    assert [len(part) for part in chunks([5], 512)] == [1]
    assert [token for part in chunks(range(1000), 37) for token in part] == list(range(1000))


def test_a_conversation_is_cut_only_where_it_is():
    session = rows_session("qwen2")
    session.reset()
    session.run([3, 4, 5])
    session.truncate(1)
    assert session.position == 1
    for position in (2, -1):
        with pytest.raises(InputError, match=f"a conversation of 1 tokens cannot be cut behind {position}"):
            session.truncate(position)


def test_a_graph_that_gives_all_logits_is_refused(tmp_path):
    folder = artifact("qwen2", "onnx", "int4-rtn")
    with pytest.raises(InputError, match=r"model\.onnx is missing"):
        graph_with_rows(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x00rubbish")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        graph_with_rows(tmp_path)
    (tmp_path / "model.onnx").write_bytes(graph_with_rows(folder))
    with pytest.raises(InputError, match="does not choose the last token"):
        graph_with_rows(tmp_path)


@pytest.mark.parametrize("name", ["executorch", "coreml"])
def test_targets_that_give_one_row_say_so(tmp_path, name):
    with pytest.raises(InputError, match=f"--lookup needs the logits of several tokens, {name} gives the last one's"):
        opener(tmp_path, name, 1, lookup=True)
