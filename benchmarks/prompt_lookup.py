"""Greedy decoding with and without prompt lookup: where answers repeat their prompt, and in free chat.

    python benchmarks/prompt_lookup.py BUNDLE [--runs 5] [--guesses 7]

Each prompt is answered in turn by the artifact as shipped ("plain"), by calls that guess nothing (--lookup-tokens 0)
and by calls with guesses, run after run, so that a slow moment of the machine is everybody's. Prints a Markdown table
of the medians of tokens per second behind the first token. Answers with and without guesses must be equal, token by
token; how many equal the plain ones is told.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median

from pocketlm.runtimes.chat import ChatFiles, load_chat_files
from pocketlm.runtimes.chat_template import encode_chat
from pocketlm.runtimes.generate import Timing, generate
from pocketlm.runtimes.lookup import MOST_GUESSES, same_in_any_call
from pocketlm.runtimes.sampling import Sampling
from pocketlm.runtimes.session import Session
from pocketlm.runtimes.targets import get_target

NEW_TOKENS = 128
TEXT = (
    "The lighthouse at Carrow Point was built in 1847 after three ships were lost on the reef in a single winter. "
    "Its first keeper, Margaret Hale, kept the lamp burning for thirty-one years and wrote down the weather of every "
    "day in a blue notebook. The lamp burned whale oil at first, paraffin from 1874, and has been electric since 1932. "
    "In 1981 the last keeper left and the light became automatic. Today the tower belongs to the town, the notebooks "
    "are kept in the library, and visitors may climb its 142 steps on the first Sunday of each month."
)
CODE = (
    "def total(prices):\n    sum = 0\n    for price in prices:\n        sum = sum + price\n    return sum\n\n"
    "def average(prices):\n    return total(prices) / len(prices)\n"
)
PROMPTS = {
    "from a given text": (
        f"Summarize this text in three sentences, with its own words:\n\n{TEXT}",
        f"Quote the sentences of this text that name a year:\n\n{TEXT}",
        f"Rewrite this text and change the name Margaret Hale to Anna Reed:\n\n{TEXT}",
        f"Repeat this text word by word:\n\n{TEXT}",
        f"Rename the variable sum to amount in this program and show the whole program:\n\n{CODE}",
    ),
    "free chat": (
        "What should I cook tonight?",
        "Write a short story about a dog who learns to swim.",
        "Explain why the sky is blue.",
        "Give me some advice on learning to play the guitar.",
        "Why do people like to travel?",
    ),
}


def answer(session: Session, files: ChatFiles, prompt: str, guesses: int | None) -> tuple[list[int], Timing]:
    """One answer's tokens and its timing."""
    tokens = encode_chat(files.tokenizer, files.template, [{"role": "user", "content": prompt}])
    pieces = list(generate(session, files.tokenizer, tokens, Sampling(), NEW_TOKENS, files.stop_tokens, lookup=guesses))
    timing = pieces[-1].timing
    assert timing is not None, "the last piece has the timing"
    return [piece.token for piece in pieces if piece.token is not None], timing


def measure(
    modes: Mapping[str, tuple[Session, int | None]], files: ChatFiles, prompts: Sequence[str], runs: int
) -> dict[str, list[tuple[list[int], float, float]]]:
    """Of each mode and prompt: the answer, tokens per second, and right guesses per call."""
    found: dict[str, list[tuple[list[int], float, float]]] = {mode: [] for mode in modes}
    for prompt in prompts:
        rates: dict[str, list[float]] = {mode: [] for mode in modes}
        last = {}
        for _ in range(runs):
            for mode, (session, guesses) in modes.items():
                tokens, timing = answer(session, files, prompt, guesses)
                rates[mode].append(timing.decode_tokens_per_second or 0.0)
                last[mode] = tokens, timing.accepted_per_call or 0.0
        for mode, (tokens, accepted) in last.items():
            found[mode].append((tokens, median(rates[mode]), accepted))
    return found


def row(kind: str, found: Mapping[str, Sequence[tuple[list[int], float, float]]]) -> str:
    """One line of the table."""
    plain, nothing, guessing = (found[mode] for mode in ("plain", "no guesses", "guesses"))
    assert [tokens for tokens, *_ in nothing] == [tokens for tokens, *_ in guessing], "guesses changed an answer"
    speeds = " | ".join(f"{median(rate for _, rate, _ in each):.0f}" for each in (plain, nothing, guessing))
    gains = [new / old for (_, new, _), (_, old, _) in zip(guessing, plain, strict=True)]
    same = sum(tokens == others for (tokens, *_), (others, *_) in zip(guessing, plain, strict=True))
    accepted = sum(each for *_, each in guessing) / len(guessing)
    gain = f"{geometric_mean(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    return f"| {kind} | {speeds} | {gain} | {accepted:.2f} | {same} of {len(plain)} |"


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guesses", type=int, default=MOST_GUESSES)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    given = parser.parse_args()
    files, onnx, folder = load_chat_files(given.bundle), get_target("onnx"), given.bundle / "onnx"
    assert onnx.open_rows is not None, "ONNX has rows"
    shipped, rows = onnx.open_session(folder, given.threads), onnx.open_rows(folder, given.threads)
    if not same_in_any_call(rows, given.guesses):
        print("Guesses can change answers of this bundle on this machine: chat would leave them out.")
        return
    modes = {"plain": (shipped, None), "no guesses": (rows, 0), "guesses": (rows, given.guesses)}
    print("| answers | plain, tokens/s | no guesses | guesses | to plain (range) | accepted per call | as plain |")
    print("|---|---|---|---|---|---|---|")
    for kind, prompts in PROMPTS.items():
        print(row(kind, measure(modes, files, prompts, given.runs)), flush=True)


if __name__ == "__main__":
    main()
