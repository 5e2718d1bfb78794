"""What is asked for an item, and whether the answer is right: the same for an artifact and for an endpoint."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .tasks import Item, MultipleChoice, RunningText, ShortAnswer, digest

# Part of the names of results: to be raised when a prompt or a rule of scoring changes.
VERSION = 1
_ARTICLES = frozenset(("a", "an", "the"))
_WORD = re.compile(r"(?<!\w)[-−]?\d+(?:[.,]\d+)*|\w+")
# A letter alone, or set off by punctuation: "B", "(b)", "**B.** four", "B - four"; but not "A horse has four legs".
_ALONE = r"[\W_]*([A-Z])(?:[\W_]*$|[ \t]*[.):,\]*\n]|\s+[-–—]\s)"
_LETTER = re.compile(_ALONE)
_SAID_LETTER = re.compile(rf"\banswer(?: is|:){_ALONE}", re.IGNORECASE)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_LONGEST_ANSWER = 2000  # characters that are kept


@dataclass(frozen=True)
class Spent:
    """What one question took.

    seconds        of the model or of the request that was answered, without waiting for retries
    prompt_tokens  read, over all prompts; None where an endpoint does not say
    new_tokens     written; None likewise
    retried        whether something had to be asked again: then nothing else was measured either
    """

    seconds: float
    prompt_tokens: int | None
    new_tokens: int | None
    retried: bool = False


@dataclass(frozen=True)
class Scores:
    """Log-likelihood of each continuation, nats; the sum over its tokens."""

    logprobs: tuple[float, ...]
    spent: Spent


@dataclass(frozen=True)
class Written:
    """What was generated greedily."""

    text: str
    spent: Spent


class Subject(Protocol):
    """What answers: an artifact or an endpoint."""

    def score(self, context: str, continuations: Sequence[str]) -> Scores:
        """Log-likelihoods of continuations: of the tokens of context + continuation behind those of the context."""
        ...

    def write(self, prompt: str, limit: int) -> Written:
        """An answer to a prompt, at most ``limit`` tokens."""
        ...


@dataclass(frozen=True)
class Method:
    """How a task is asked.

    likelihood      choices by log-likelihood; otherwise by what is generated
    chat            prompts are a user's messages in the model's chat template; otherwise plain text, one line of answer
    max_new_tokens  of a generated answer
    """

    likelihood: bool
    chat: bool
    max_new_tokens: int


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    right       whether the answer counts; None for running text
    by_length   the same with log-likelihoods divided by the characters of each choice; None where there are none
    logprob     of running text behind its first word, nats
    size_bytes  of that text, in UTF-8
    answer      the choice, or what was generated (its beginning)
    understood  False if no choice could be read from what was generated: that is a wrong answer
    """

    right: bool | None
    spent: Spent
    answer: str = ""
    by_length: bool | None = None
    logprob: float | None = None
    size_bytes: int | None = None
    understood: bool = True


def ask(subject: Subject, item: Item, method: Method) -> Outcome:
    """Ask one item and judge the answer."""
    if isinstance(item, RunningText):
        context, rest = split_text(item.text)
        scores = subject.score(context, [rest])
        return Outcome(None, scores.spent, logprob=scores.logprobs[0], size_bytes=len(rest.encode()))
    if isinstance(item, MultipleChoice) and method.likelihood:
        return _choose(subject, item)
    item = shuffled(item) if isinstance(item, MultipleChoice) else item
    written = subject.write(prompt(item, method.chat), method.max_new_tokens)
    answer = _THOUGHTS.sub("", written.text).strip()
    if isinstance(item, ShortAnswer):
        return Outcome(holds(answer, item.answers), written.spent, answer[:_LONGEST_ANSWER])
    place = read_choice(answer, item.choices)
    return Outcome(place in item.right, written.spent, answer[:_LONGEST_ANSWER], understood=place is not None)


def _choose(subject: Subject, item: MultipleChoice) -> Outcome:
    """The likeliest choice; the first among equals."""
    scores = subject.score(question_text(item.question), [f" {choice}" for choice in item.choices])
    places = range(len(item.choices))
    best = max(places, key=lambda place: scores.logprobs[place])
    longest = max(places, key=lambda place: scores.logprobs[place] / len(item.choices[place]))
    return Outcome(best in item.right, scores.spent, item.choices[best], by_length=longest in item.right)


def shuffled(item: MultipleChoice) -> MultipleChoice:
    """The same choices in an order that a hash of the question gives.

    Small models like one letter better than others, and files have the right choice first more often than not (40 of
    70 in BIG-bench's general_knowledge): in the file's order such a model would seem to know the answers.
    """
    name = digest(item)
    order = sorted(range(len(item.choices)), key=lambda place: hashlib.sha256(f"{name}{place}".encode()).digest())
    right = tuple(sorted(order.index(place) for place in item.right))
    return MultipleChoice(item.question, tuple(item.choices[place] for place in order), right)


def question_text(question: str) -> str:
    """A question in plain text, up to where its answer begins."""
    return f"Question: {question.strip()}\nAnswer:"


def prompt(item: MultipleChoice | ShortAnswer, chat: bool) -> str:
    """What a generated answer is asked with."""
    question = item.question.strip()
    if isinstance(item, ShortAnswer):
        return f"{question}\nAnswer in a few words." if chat else question_text(question)
    choices = "\n".join(f"{chr(65 + place)}. {choice}" for place, choice in enumerate(item.choices))
    with_choices = f"{question}\n\n{choices}"
    return f"{with_choices}\n\nAnswer with the letter of the right choice." if chat else question_text(with_choices)


def prompts(item: Item, method: Method) -> list[tuple[str, str]]:
    """(prompt, continuation) pairs that ``ask`` needs room for; the continuation is empty where one is generated."""
    if isinstance(item, RunningText):
        return [split_text(item.text)]
    if isinstance(item, MultipleChoice) and method.likelihood:
        return [(question_text(item.question), f" {choice}") for choice in item.choices]
    return [(prompt(item, method.chat), "")]


def split_text(text: str) -> tuple[str, str]:
    """Running text as its first word (or its first character, where words are not divided) and the rest.

    Whether a model puts a token in front of a text or not, both sides are then judged on the same bytes.
    """
    text = text.strip()
    match = re.match(r"\S{1,40}(?=\s)", text)
    place = match.end() if match else 1
    return text[:place], text[place:]


def words(text: str) -> list[str]:
    """What two answers are compared by: words and numbers without case, punctuation and articles."""
    found = [word.replace("−", "-") for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]
    return [word for word in found if word not in _ARTICLES] or found or text.split()


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether a text contains one of the answers as whole words (SQuAD's rules of comparison)."""
    return any(_contains(words(text), words(answer)) for answer in answers)


def _contains(all_words: Sequence[str], part: Sequence[str]) -> bool:
    places = range(len(all_words) - len(part) + 1)
    return any(list(all_words[place : place + len(part)]) == list(part) for place in places)


def read_choice(text: str, choices: Sequence[str]) -> int | None:
    """The choice that a generated answer names: by letter, or because its text alone occurs in it. None if unclear."""
    for pattern in (_LETTER.match, _SAID_LETTER.search):
        found = pattern(text)
        if found:
            place = ord(found[1].upper()) - ord("A")
            if place < len(choices):
                return place
    spoken = words(text)
    hits = [place for place, choice in enumerate(choices) if _contains(spoken, words(choice))]
    # "New York" holds "York": the longer one is meant.
    whole = [
        place
        for place in hits
        if not any(other != place and _contains(words(choices[other]), words(choices[place])) for other in hits)
    ]
    return whole[0] if len(whole) == 1 else None


def bits_per_byte(outcome: Outcome) -> float:
    """Of running text: comparable between models with different tokenizers, unlike perplexity for each token."""
    assert outcome.logprob is not None, "running text"
    assert outcome.size_bytes, "running text"
    return -outcome.logprob / math.log(2) / outcome.size_bytes
