"""Files of text as passages: what a search finds and a model reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from bs4 import Tag

SHORTEST = 200  # characters: shorter paragraphs are put together with what follows
LONGEST = 1200  # characters: about 300 tokens, so that three passages fit a context of 2,048
LONGEST_TITLE = 200  # characters
LARGEST_FILE = 32 << 20  # bytes

_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (*_HEADINGS, "p", "li", "pre", "td", "th", "dd", "dt", "blockquote", "figcaption")
_NOT_TEXT = ("title", "script", "style", "template", "noscript", "head", "nav", "svg", "iframe", "object")


@dataclass(frozen=True)
class Passage:
    """A piece of text that a source found.

    title   heading or name of the document
    text    plain text, one paragraph or a few
    source  where it is from, for people: a path in the indexed folder, or an address
    """

    title: str
    text: str
    source: str


class SearchError(Exception):
    """A source could not answer; the chat goes on without it."""


def read_passages(path: Path) -> list[tuple[str, str]]:
    """The passages of a .txt, .md or .html file: (heading, text), in order.

    Raises InputError for a file that is too large, not UTF-8 text, or cannot be read.
    """
    reader = READERS[path.suffix.lower()]
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: larger than {LARGEST_FILE >> 20} MB; split it")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; convert it") from error
    if "\0" in text:
        raise InputError(f"{path}: holds zero bytes, so it is no text")
    return list(_sized(reader(text, path.stem)))


def _plain(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Paragraphs are what blank lines divide."""
    for paragraph in _BLANK_LINES.split(text.replace("\r\n", "\n").replace("\r", "\n")):
        yield name, " ".join(paragraph.split())


def _markdown(text: str, name: str) -> Iterator[tuple[str, str]]:
    from markdown_it import MarkdownIt

    return _html(MarkdownIt("commonmark", {"html": False}).enable("table").render(text), name)


def _html(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Blocks of text under the last heading before them; the document's name stands before the first."""
    soup = _soup(text)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    heading = title = " ".join(title.split()) or name
    for tag in soup.find_all(_NOT_TEXT):
        tag.decompose()
    if soup.find(_BLOCKS) is None:
        yield from _plain(soup.get_text("\n\n"), title)
        return
    for block, strings in groupby(_texts_of_blocks(soup), key=itemgetter(0)):
        words = " ".join(" ".join(text for _, text in strings).split())
        if block[0] in _HEADINGS:
            heading = words or heading
        elif words:
            yield heading, words


def _texts_of_blocks(soup: Tag) -> Iterator[tuple[tuple[str, int], str]]:
    """Every text with the innermost block around it (its name, and a number of its own), in the page's order.

    A block that holds others keeps what stands outside of them: an HTML parser puts all that follows into a paragraph
    that nobody closed.
    """
    from bs4.element import NavigableString, Tag

    innermost: dict[int, tuple[str, int]] = {id(soup): ("", 0)}
    for number, node in enumerate(soup.descendants, 1):
        around = innermost[id(node.parent)]
        if isinstance(node, Tag):
            innermost[id(node)] = (node.name, number) if node.name in _BLOCKS else around
        elif type(node) is NavigableString:  # and not a comment, or a declaration
            yield around, str(node)


def _soup(text: str) -> Tag:
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise InputError("indexing needs beautifulsoup4; run: pip install 'pocketlm[search]'") from error
    return BeautifulSoup(_without_comments(text), "html.parser")


def _without_comments(text: str) -> str:
    """As a browser reads it: a comment that nobody closed lasts to the end.

    The parser would look for an end from each start.
    """
    parts, at = [], 0
    while (start := text.find("<!--", at)) >= 0:
        parts.append(text[at:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(parts)
        at = end + 3
    return "".join([*parts, text[at:]])


READERS: Mapping[str, Callable[[str, str], Iterator[tuple[str, str]]]] = {
    ".txt": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
}


def _sized(paragraphs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Short paragraphs under one heading joined, long ones cut behind a sentence."""
    title, waiting = "", ""
    for whole_heading, text in paragraphs:
        if not text:
            continue
        heading = whole_heading[:LONGEST_TITLE]
        if waiting and (heading != title or len(waiting) >= SHORTEST or len(waiting) + len(text) > LONGEST):
            yield title, waiting
            waiting = ""
        title = heading
        *whole, waiting = _cut(f"{waiting} {text}".strip())
        for piece in whole:
            yield title, piece
    if waiting:
        yield title, waiting


def _cut(text: str) -> list[str]:
    """Pieces of at most ``LONGEST`` characters, cut behind sentences; in one that is longer, between words."""
    pieces, current = [], ""
    for sentence in _SENTENCE_END.split(text):
        for part in _parts(sentence):
            if current and len(current) + 1 + len(part) > LONGEST:
                pieces.append(current)
                current = ""
            current = f"{current} {part}".strip()
    return [*pieces, current]


def _parts(sentence: str) -> Iterator[str]:
    while len(sentence) > LONGEST:
        place = sentence.rfind(" ", 1, LONGEST)
        place = LONGEST if place < 1 else place
        yield sentence[:place]
        sentence = sentence[place:].lstrip()
    yield sentence
