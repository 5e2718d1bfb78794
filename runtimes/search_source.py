"""Where facts come from: an index file, a SearXNG instance, Wikipedia, or several of them at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from ..errors import InputError
from .search_index import IndexSource
from .search_passages import LONGEST, Passage, SearchError


class Source(Protocol):
    """Something that finds passages."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def search(self, words: Sequence[str], limit: int) -> list[Passage]:
        """Up to ``limit`` passages, best first; raises SearchError (or InputError for a damaged index)."""
        ...


def open_source(given: str) -> Source:
    """A source as a user names it: ``facts.db``, ``searxng:URL`` or ``wikipedia:LANGUAGE``.

    Raises InputError for anything else, and for an index that cannot be read.
    """
    kind, _, rest = given.partition(":")
    if kind == "searxng":
        return SearxngSource(rest)
    if kind == "wikipedia":
        return WikipediaSource(rest or "en")
    if "://" in given:
        raise InputError(f"{given}: is not a source; a SearXNG instance is named searxng:{given}")
    return IndexSource(Path(given))


class SearxngSource:
    """A SearXNG instance's JSON API (its settings must have ``json`` among search.formats)."""

    def __init__(self, url: str) -> None:
        """Raises InputError if the address is none."""
        from .search_http import check_url

        check_url(url)
        parts = urlsplit(url)
        assert parts.hostname is not None, "checked"
        self.name = f"searxng:{parts.hostname}"
        self._url = url.rstrip("/")
        self._host = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    def search(self, words: Sequence[str], limit: int) -> list[Passage]:
        """See Source. Passages are the snippets that the instance gives."""
        from .search_http import fetch_json

        query = urlencode({"q": " ".join(words), "format": "json"})
        answer = fetch_json(f"{self._url}/search?{query}", private_host=self._host)
        return [
            Passage(_text(result, "title"), _text(result, "content"), _text(result, "url"))
            for result in _objects(answer, "results")
            if _text(result, "content")
        ][:limit]


class WikipediaSource:
    """The search of one language's Wikipedia, and the introductions of the articles it finds (MediaWiki's API)."""

    def __init__(self, language: str, address: str | None = None) -> None:
        """``address`` is that of api.php, if it is not Wikipedia's. Raises InputError for no language code."""
        if not re.fullmatch(r"[a-z]{2,3}(-[a-z]{2,8})*", language):
            raise InputError(f"wikipedia:{language}: is not a language code; write wikipedia:en")
        self.name = f"wikipedia:{language}"
        self._site = f"https://{language}.wikipedia.org"
        self._address = address or f"{self._site}/w/api.php"

    def search(self, words: Sequence[str], limit: int) -> list[Passage]:
        """See Source."""
        from .search_http import fetch_json

        query = {
            "action": "query", "format": "json", "formatversion": 2, "generator": "search",
            "gsrsearch": " ".join(words), "gsrlimit": limit, "prop": "extracts", "exintro": 1, "explaintext": 1,
            "exlimit": "max",
        }  # fmt: skip
        parts = urlsplit(self._address)
        host = (parts.hostname or "", parts.port or 443)
        answer = fetch_json(f"{self._address}?{urlencode(query)}", private_host=host)
        pages = _objects(answer.get("query") if isinstance(answer, dict) else None, "pages", optional=True)
        pages.sort(key=lambda page: page.get("index", 0) if isinstance(page.get("index"), int) else 0)
        return [
            Passage(title, _text(page, "extract"), f"{self._site}/wiki/{quote(title.replace(' ', '_'))}")
            for page in pages
            if (title := _text(page, "title")) and _text(page, "extract")
        ][:limit]


def _objects(answer: Any, key: str, optional: bool = False) -> list[dict[str, Any]]:
    """The list of objects under a key of an answer."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if found is None and optional:
        return []
    if not isinstance(found, list):
        raise SearchError(f"the answer has no list of {key}")
    return [entry for entry in found if isinstance(entry, dict)]


def _text(entry: dict[str, Any], key: str) -> str:
    """A text of somebody else's as one line of plain text, of a passage's length at most."""
    value = entry.get(key)
    if not isinstance(value, str):
        return ""
    plain = unescape(re.sub(r"<[^<>]{0,200}>", " ", value))
    plain = "".join(character if character.isprintable() else " " for character in plain)
    return " ".join(plain.split())[:LONGEST]


def search_all(sources: Sequence[Source], words: Sequence[str], limit: int) -> tuple[list[Passage], list[str]]:
    """Ask all sources at once: their passages by turns, each text once, and a line for each source that failed."""

    def ask(source: Source) -> list[Passage] | str:
        try:
            return source.search(words, limit)
        except (SearchError, InputError) as error:
            return f"{source.name}: {error}"

    with ThreadPoolExecutor(max(1, len(sources))) as pool:
        answers = list(pool.map(ask, sources))
    found = [answer for answer in answers if not isinstance(answer, str)]
    turns = [passage for turn in zip_longest(*found) for passage in turn if passage is not None]
    unique: dict[str, Passage] = {}
    for passage in turns:
        unique.setdefault(passage.text, passage)
    return list(unique.values())[:limit], [answer for answer in answers if isinstance(answer, str)]
