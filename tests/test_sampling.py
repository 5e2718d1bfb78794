"""Sampling against transformers' own logits processors, and against the vectors the apps share."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.vectors import SETTINGS, drawn_tokens, large_logits
from pocketlm.errors import InputError
from pocketlm.runtimes.sampling import Sampling, probabilities, sample, uniforms

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sampling.json").read_text())


def transformers_probabilities(logits: np.ndarray, sampling: Sampling, history: list[int]) -> Any:
    """The distribution of transformers' ``generate``, its processors in the order of ``_get_logits_processor``."""
    import torch
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as own

    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(own.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(own.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(own.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(own.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(own.MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([history]), torch.from_numpy(logits[None]).double())
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [200, 3000])
def test_distribution_is_transformers(sampling: Sampling, vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    for _ in range(20):
        logits = (3 * random.normal(size=vocabulary)).astype(np.float32)
        history = random.integers(0, vocabulary, 30).tolist()
        ours = probabilities(logits, sampling, history)
        theirs = transformers_probabilities(logits, sampling, history)
        assert np.array_equal(ours > 0, theirs > 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=0)


def test_masked_and_tied_logits_are_treated_as_transformers_does() -> None:
    logits = np.array([2, -np.inf, 2, 1, 1, 1, -3, 0], np.float32)
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, min_p=0.3)):
        np.testing.assert_allclose(
            probabilities(logits, sampling, []), transformers_probabilities(logits, sampling, [0]), rtol=1e-9
        )
    assert probabilities(logits, Sampling(1.0, top_k=3), []).astype(bool).tolist() == [1, 0, 1, 1, 1, 1, 0, 0]


def test_greedy_takes_the_lowest_id_among_equals_and_draws_nothing() -> None:
    assert sample(np.array([1, 3, 3], np.float32), Sampling(), [], iter(())) == 1
    assert sample(np.array([1, 3, 2], np.float32), Sampling(repetition_penalty=2.0), [1], iter(())) == 2


def test_top_p_stops_at_the_token_that_reaches_it_exactly() -> None:
    logits = np.zeros(4, np.float32)
    assert probabilities(logits, Sampling(1.0, top_p=0.5), []).tolist() == [0.5, 0.5, 0, 0]
    theirs = np.sort(transformers_probabilities(logits, Sampling(1.0, top_p=0.5), [0]))
    assert theirs.tolist() == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize(("drawn", "token"), [(0.0, 0), (0.5, 1), (1 - 2.0**-53, 1)])
def test_a_draw_on_a_boundary_takes_the_token_behind_it(drawn: float, token: int) -> None:
    assert sample(np.zeros(2, np.float32), Sampling(temperature=1.0), [], iter([drawn])) == token


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits = np.random.default_rng(1).normal(size=1500).astype(np.float32) * 4
    expected = probabilities(logits, sampling, [3])
    random = uniforms(5)
    counts = np.bincount([sample(logits, sampling, [3], random) for _ in range(4000)], minlength=1500)
    assert not counts[expected == 0].any()
    assert abs(counts / 4000 - expected).max() < 5 * 0.5 / 4000**0.5  # five standard deviations of a fair coin


def test_the_sorted_head_gives_the_token_of_the_whole_order() -> None:
    """Large vocabularies are sorted only as far as the draw needs: nearly flat logits reach past that."""
    for scale in (0.001, 1.0, 5.0):
        logits = (np.random.default_rng(2).normal(size=5000) * scale).astype(np.float32)
        weights = np.exp(logits.astype(np.float64) - logits.max())
        order = np.lexsort((np.arange(5000), -weights))
        cumulative = np.cumsum(weights[order])
        for drawn in islice(uniforms(3), 200):
            expected = order[np.searchsorted(cumulative, drawn * weights.sum(), side="right")]
            assert sample(logits, Sampling(temperature=1.0), [], iter([drawn])) == expected


def test_splitmix64_is_the_published_generator() -> None:
    """First outputs for seed 1234567 of the reference C code (Vigna, splitmix64.c)."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(uniforms(1234567), 3)) == [(value >> 11) * 2.0**-53 for value in reference]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["sampling"]))
def test_golden(case: dict[str, Any]) -> None:
    assert drawn_tokens(GOLDEN["logits"], case) == case["tokens"]


@pytest.mark.parametrize("case", GOLDEN["large"]["cases"], ids=lambda case: str(case["sampling"]))
def test_golden_of_a_large_vocabulary(case: dict[str, Any]) -> None:
    assert drawn_tokens(large_logits(GOLDEN["large"]), case) == case["tokens"]


def test_golden_has_no_draw_within_rounding_of_a_boundary() -> None:
    """Languages differ in the last bit of exp: the shared vectors must not depend on it."""
    large = GOLDEN["large"]
    cases = [(GOLDEN["logits"], case) for case in GOLDEN["cases"]]
    for logits, case in [*cases, *((large_logits(large), case) for case in large["cases"])]:
        sampling = Sampling(**case["sampling"])
        random = uniforms(sampling.seed)
        history = list(case["history"])
        for row, token in zip(logits, case["tokens"], strict=True):
            if sampling.temperature:
                chances = probabilities(np.array(row, np.float32), sampling, history)
                edges = np.cumsum(np.sort(chances)[::-1])
                assert np.abs(edges[:-1] - next(random)).min() > 1e-9
            history.append(token)


@pytest.mark.parametrize("logits", [[1, np.nan, 2], [1, np.inf, 2], [-np.inf, -np.inf, -np.inf]])
def test_logits_that_are_not_numbers(logits: list[float]) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(InputError, match="not finite numbers; run `pocketlm verify`"):
            sample(np.array(logits, np.float32), sampling, [], uniforms(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_k", -1),
        ("top_p", 0.0), ("top_p", 1.1), ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 1.5),
        ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")), ("seed", -1), ("seed", 1 << 64),
    ],
)  # fmt: skip
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} must be .*; it is "):
        Sampling(**{name: value})
