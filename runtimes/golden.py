"""The golden file: what every runtime and every phone replays, teacher-forced, to prove that it computes the same.

Content of golden.json:

    schema_version  1
    prefill         tokens to feed at once; the rest follow one at a time
    prose           index of the first sequence that is prose; those before are the model's answers to prompts
    sequences       {"prompt": text, "tokens": [ids], "continuation": text behind the first ``prefill`` tokens}
    first           position of the first expectation in every sequence: logits behind tokens[first]
    targets         name -> {"tolerance_kl": nats, "expected": per sequence, per position
                    {"log_sum_exp": of all logits, "ids": [the likeliest], "logits": [theirs]}}; "onnx" is what
                    ONNX Runtime gives on x86, "onnx-arm64" on ARM cores with dot products, "onnx-fp32" on others

A runtime passes if its mean KL over the positions is within the tolerance. The KL is taken over the listed tokens and
one more outcome for all others; it never exceeds the KL over the whole vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .judge import Evaluation, Logits
from .metrics import log_softmax
from .session import Session

GOLDEN_FILE = "golden.json"
SCHEMA_VERSION = 1

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain why the sky is blue in one sentence.",
    "List three uses of a paper clip.",
)
_CONTINUATION = 24  # tokens behind the longest prompt
_LONGEST = 128  # tokens of a sequence: enough to fill a cache, short enough to verify in seconds
_POSITIONS = 16  # last positions of each sequence that are kept
_LIKELIEST = 32


@dataclass(frozen=True)
class Golden:
    """The sequences that artifacts are judged on, the texts behind them, and what each target must give."""

    evaluation: Evaluation
    prompts: tuple[str, ...]
    targets: Mapping[str, Mapping[str, Any]]


def make_sequences(
    prompts: Sequence[Sequence[int]], prose: Sequence[int], beginning: Sequence[int], session: Session
) -> Evaluation:
    """Continue each prompt greedily with ``session``, and cut as many pieces of the same length out of the prose.

    ``beginning`` is what a text of the model starts with (a begin-of-text token, or nothing). All sequences have one
    length, so that the reference can run them side by side.
    """
    longest = max(map(len, prompts))
    length = min(session.context, _LONGEST, longest + _CONTINUATION)
    cut = [list(prompt[: max(1, length - _CONTINUATION // 2)]) for prompt in prompts]
    rows = [_continue(session, prompt, length) for prompt in cut]
    rows += _cut_prose(prose, beginning, len(prompts), length)
    return Evaluation(np.array(rows, np.int64), prefill=min(map(len, cut)), prose=len(prompts))


def prose_sequences(prose: Sequence[int], beginning: Sequence[int], context: int) -> Evaluation:
    """Pieces of the prose alone, for where no artifact is run that could answer prompts."""
    length = min(context, _LONGEST)
    rows = _cut_prose(prose, beginning, len(PROMPTS), length)
    return Evaluation(np.array(rows, np.int64), prefill=max(1, length - _CONTINUATION), prose=0)


def _cut_prose(prose: Sequence[int], beginning: Sequence[int], count: int, length: int) -> list[list[int]]:
    step = max(1, (len(prose) - length) // count)
    repeated = list(prose) * (2 + count + length // len(prose))
    return [[*beginning, *repeated[index * step :]][:length] for index in range(count)]


def _continue(session: Session, prompt: list[int], length: int) -> list[int]:
    """Greedy, through stop tokens: only the logits matter here."""
    session.reset()
    tokens = list(prompt)
    logits = session.run(prompt)
    while len(tokens) < length:
        tokens.append(int(logits.argmax()))
        if len(tokens) < length:
            logits = session.run(tokens[-1:])
    return tokens


def expectation(expected: Logits, tolerance_kl: float) -> dict[str, Any]:
    """What golden.json keeps of a target's expected logits (sequences, positions, vocab_size)."""
    kept = expected[:, -_POSITIONS:]
    return {
        "tolerance_kl": tolerance_kl,
        "expected": [[_likeliest(logits) for logits in sequence] for sequence in kept],
    }


def _likeliest(logits: NDArray[np.float32]) -> dict[str, Any]:
    wide = logits.astype(np.float64)
    ids = np.argsort(-wide, kind="stable")[:_LIKELIEST]
    log_sum_exp = float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    return {
        "log_sum_exp": round(log_sum_exp, 5),
        "ids": ids.tolist(),
        "logits": [round(float(value), 5) for value in wide[ids]],
    }


def replay_kl(expected: Sequence[Sequence[Mapping[str, Any]]], actual: Logits) -> float:
    """Mean KL of an expectation against logits (sequences, positions, vocab_size): the kept tokens and the rest."""
    kept = actual[:, -len(expected[0]) :]
    pairs = [pair for rows in zip(expected, kept, strict=True) for pair in zip(*rows, strict=True)]
    return float(np.mean([_kl_of_position(position, logits) for position, logits in pairs]))


def _kl_of_position(position: Mapping[str, Any], logits: NDArray[np.float32]) -> float:
    log_p = np.array(position["logits"], np.float64) - position["log_sum_exp"]
    log_q = log_softmax(logits.astype(np.float64))[position["ids"]]
    rest_p, rest_q = (max(1e-12, 1.0 - float(np.exp(values).sum())) for values in (log_p, log_q))
    kl = float((np.exp(log_p) * (log_p - log_q)).sum()) + rest_p * float(np.log(rest_p / rest_q))
    return kl if np.isfinite(kl) else float("inf")


def write_golden(folder: Path, golden: Golden, decode: Callable[[Sequence[int]], str]) -> None:
    """Write golden.json into a bundle."""
    evaluation = golden.evaluation
    texts = [*golden.prompts, *[""] * (len(evaluation.tokens) - len(golden.prompts))]
    content = {
        "schema_version": SCHEMA_VERSION,
        "prefill": evaluation.prefill,
        "prose": evaluation.prose,
        "first": evaluation.tokens.shape[1] - _kept_positions(evaluation),
        "sequences": [
            {"prompt": text, "tokens": tokens, "continuation": decode(tokens[evaluation.prefill :])}
            for text, tokens in zip(texts, evaluation.tokens.tolist(), strict=True)
        ],
        "targets": golden.targets,
    }
    (folder / GOLDEN_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept_positions(evaluation: Evaluation) -> int:
    return min(_POSITIONS, int(evaluation.tokens.shape[1]) - evaluation.first)


def read_golden(folder: Path) -> Golden:
    """Read a bundle's golden.json; raises InputError if it is missing or damaged."""
    path = folder / GOLDEN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{path}: schema {content['schema_version']} is not known; upgrade pocketlm")
        tokens = np.array([sequence["tokens"] for sequence in content["sequences"]], np.int64)
        evaluation = Evaluation(tokens, int(content["prefill"]), int(content["prose"]))
        if not 0 < evaluation.prefill < tokens.shape[1]:
            raise ValueError("prefill lies outside the sequences")
        prompts = tuple(sequence["prompt"] for sequence in content["sequences"][: evaluation.prose])
        return Golden(evaluation, prompts, content["targets"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: missing or damaged ({type(error).__name__}: {error}); export again") from error


def first_sequences(golden: Golden, count: int) -> Golden:
    """The first ``count`` of the model's answers and the first ``count`` pieces of prose: a quick replay."""
    evaluation = golden.evaluation
    answers, pieces = range(evaluation.prose), range(evaluation.prose, len(evaluation.tokens))
    chosen = [*answers[:count], *pieces[:count]]
    targets = {
        name: {**target, "expected": [target["expected"][row] for row in chosen]}
        for name, target in golden.targets.items()
    }
    fewer = replace(evaluation, tokens=evaluation.tokens[chosen], prose=len(answers[:count]))
    return Golden(fewer, golden.prompts[:count], targets)


def read_prose() -> str:
    """The prose that perplexity is measured on: the opening of Jane Austen's Persuasion (1818, public domain)."""
    return (Path(__file__).parent / "data" / "prose.txt").read_text(encoding="utf-8")
