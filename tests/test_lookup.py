"""Prompt lookup: guesses change how many calls an answer takes, and nothing else."""

import json
import random
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner
from fake_session import FakeSession
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.runtimes.cli_shared import opener
from pocketlm.runtimes.generate import generate
from pocketlm.runtimes.lookup import find_guesses, same_in_any_call, usable
from pocketlm.runtimes.onnx_rows import graph_with_rows
from pocketlm.runtimes.onnx_session import OnnxSession, chunks
from pocketlm.runtimes.sampling import Sampling
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
    assert len(said) == 1 and said[0].startswith("lookup is off: a token's logits depend")
    assert usable(session, None, said.append) is None and len(said) == 1


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
        if source.random() < 0.05:
            tokens, _ = tokens, source.random()
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
