"""Tasks: questions with choices, questions with short answers, and running text, from a file of JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .tokenizer import check_unicode

MOST_CHOICES = 26  # they are named by letters
LARGEST_FILE = 256 << 20  # bytes


@dataclass(frozen=True)
class MultipleChoice:
    """A question; ``right`` has the places of the choices that count, from 0."""

    question: str
    choices: tuple[str, ...]
    right: tuple[int, ...]


@dataclass(frozen=True)
class ShortAnswer:
    """A question that a few words answer; an answer counts if it holds one of these."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class RunningText:
    """A text of which each part should be likely behind what stands before it."""

    text: str


Item = MultipleChoice | ShortAnswer | RunningText


@dataclass(frozen=True)
class Task:
    """Items under a name.

    about  where they come from and under which licence, for the report; may be empty
    """

    name: str
    items: tuple[Item, ...]
    about: Mapping[str, str] = field(default_factory=dict)


def digest(item: Item) -> str:
    """What names an item in a results file: a hash of all that is asked and of all that counts."""
    content = json.dumps([type(item).__name__, asdict(item)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def read_task_file(path: Path) -> Task:
    """The task in a file of JSON lines (see docs/tasks.md).

    Raises InputError, naming the line, for what is none.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: is larger than {LARGEST_FILE >> 20} MB; cut it into several tasks")
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --tasks takes a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; a task is a file of JSON lines") from error
    return parse_task(content, path.stem, str(path))


def parse_task(content: str, name: str, source: str) -> Task:
    """The task in the lines of ``source``; the first may describe it: {"about": {"licence": ...}}."""
    items: list[Item] = []
    about: dict[str, str] = {}
    for number, entry in _objects(content, source):
        try:
            if not items and set(entry) == {"about"}:
                about = _about(entry["about"])
            else:
                items.append(parse_item(entry))
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error}") from error
    if not items:
        raise InputError(f"{source}: holds no question; write one JSON object a line")
    return Task(name, tuple(items), about)


def _objects(content: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would cut at characters that JSON may hold
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}, line {number}: is not JSON; a task has one JSON object a line") from error
        if not isinstance(entry, dict):
            raise InputError(f"{source}, line {number}: is no JSON object")
        yield number, entry


def _about(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise InputError("about must be an object of texts")
    return given


def parse_item(entry: Mapping[str, Any]) -> Item:
    """One item; its keys say which kind it is. ``id`` may be there and is not looked at."""
    keys = frozenset(entry) - {"id"}
    if keys == {"question", "choices", "answer"}:
        choices = _texts(entry["choices"], "choices")
        if not 2 <= len(choices) <= MOST_CHOICES or len(set(choices)) < len(choices):
            raise InputError(f"choices must be 2 to {MOST_CHOICES} different texts")
        return MultipleChoice(_text(entry["question"], "question"), choices, _right(entry["answer"], choices))
    if keys == {"question", "answers"}:
        return ShortAnswer(_text(entry["question"], "question"), _texts(entry["answers"], "answers"))
    if keys == {"text"}:
        text = _text(entry["text"], "text")
        if len(text.strip()) < 2:
            raise InputError("text must have more than one character")
        return RunningText(text)
    raise InputError(
        f"its keys are {', '.join(sorted(map(str, entry))) or 'none'}; "
        "there are question, choices, answer; question, answers; text"
    )


def _text(given: Any, name: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise InputError(f"{name} must be a text")
    check_unicode(given)
    return given


def _texts(given: Any, name: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(f"{name} must be a list of texts")
    return tuple(_text(entry, name) for entry in given)


def _right(given: Any, choices: tuple[str, ...]) -> tuple[int, ...]:
    """The places of the right choices, given as places, as texts, or as a list of them."""
    places = []
    for entry in given if isinstance(given, list) else [given]:
        if isinstance(entry, str) and entry in choices:
            places.append(choices.index(entry))
        elif isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(choices):
            places.append(entry)
        else:
            raise InputError(f"answer must be one of the choices, or its place from 0; it is {str(entry)[:40]!r}")
    if not places:
        raise InputError("answer must name a choice")
    return tuple(sorted(set(places)))


def limited(task: Task, limit: int | None) -> Task:
    """At most so many items, in the file's order: those with the lowest hashes, because files are often sorted."""
    if limit is None or limit >= len(task.items):
        return task
    places = sorted(sorted(range(len(task.items)), key=lambda place: digest(task.items[place]))[:limit])
    return replace(task, items=tuple(task.items[place] for place in places))
