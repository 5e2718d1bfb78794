"""The full-text table for Android, whose own SQLite has FTS4, but neither FTS5 nor its tokenizer.

``passages_fts4`` holds the terms that FTS5's tokenizer made of the passages, so that both tables know the same terms
and give the same scores. For each word of a query an app

1. splits it with ``fts3tokenize('unicode61')``, which splits as FTS5 does, and stems the parts (Porter 1980, on UTF-8);
2. asks for them as one phrase: the rows are the passages that hold it, and ``matchinfo(passages_fts4, 'nlx')`` of a
   row has the number of passages, the passage's terms in each column, and three numbers for each column, hits first;
3. adds to a passage's score what bm25 of FTS5 adds: k1 = 1.2, b = 0.75, an inverse document frequency of at least
   1e-6, and a passage's length on average from ``meta``'s ``terms``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

TOKENIZER = "porter unicode61"

# The terms stand between spaces, where FTS4's tokenizer "simple" finds them as they are.
TERM_TABLES = """
CREATE TABLE passage_terms (id INTEGER PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL);
CREATE VIRTUAL TABLE passages_fts4 USING fts4 (title, text, content='passage_terms', tokenize=simple);
"""

_TEMPORARY_TABLES = f"""
CREATE VIRTUAL TABLE temp.few_passages USING fts5 (title, text, content='', tokenize='{TOKENIZER}');
CREATE VIRTUAL TABLE temp.few_terms USING fts5vocab (temp, few_passages, instance);
CREATE VIRTUAL TABLE temp.all_terms USING fts5vocab (main, passages_fts5, row);
"""

_Passages = Sequence[tuple[int, str, str]]  # id, title, text


def prepare_terms(database: sqlite3.Connection) -> None:
    """Make the connection ready for the functions below."""
    database.executescript(_TEMPORARY_TABLES)


def add_terms(database: sqlite3.Connection, passages: _Passages) -> None:
    """Put passages into the table for Android."""
    database.executemany(
        "INSERT INTO passages_fts4 (docid, title, text) VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))",
        _terms(database, passages),
    )


def remove_terms(database: sqlite3.Connection, passages: _Passages) -> None:
    """Take passages out; the table has to be told what it held of them."""
    database.executemany(
        "INSERT INTO passage_terms (id, title, text) VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))",
        _terms(database, passages),
    )
    database.execute("DELETE FROM passages_fts4 WHERE docid IN (SELECT id FROM passage_terms)")
    database.execute("DELETE FROM passage_terms")


def count_terms(database: sqlite3.Connection) -> int:
    """Terms in all passages."""
    return int(database.execute("SELECT coalesce(sum(cnt), 0) FROM temp.all_terms").fetchone()[0])


def terms_bytes(database: sqlite3.Connection) -> int:
    """Bytes that the table for Android holds, without SQLite's own."""
    parts = [
        "SELECT sum(length(block)) FROM passages_fts4_segments",
        "SELECT sum(length(root)) FROM passages_fts4_segdir",
        "SELECT sum(length(size)) FROM passages_fts4_docsize",
    ]
    return sum(int(database.execute(part).fetchone()[0] or 0) for part in parts)


def _terms(database: sqlite3.Connection, passages: _Passages) -> list[tuple[int, bytes, bytes]]:
    """(id, terms of the title, terms of the text): what FTS5's tokenizer makes of passages.

    As bytes: a stem may end within a character.
    """
    database.execute("INSERT INTO few_passages (few_passages) VALUES ('delete-all')")
    database.executemany("INSERT INTO few_passages (rowid, title, text) VALUES (?, ?, ?)", passages)
    found: dict[tuple[int, str], list[bytes]] = {}
    for number, column, term in database.execute(
        "SELECT doc, col, CAST(term AS BLOB) FROM few_terms ORDER BY doc, col, offset"
    ):
        found.setdefault((number, column), []).append(term)
    return [
        (number, b" ".join(found.get((number, "title"), [])), b" ".join(found.get((number, "text"), [])))
        for number, _, _ in passages
    ]
