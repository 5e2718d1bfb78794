"""An index of a folder's texts in one SQLite file, which desktops and phones open as it is.

Tables:

    meta          key, value: ``schema``, ``state`` (``complete`` when every file is in), ``terms`` (in all passages)
    files         path relative to the folder, size in bytes, time of modification, sha256
    passages      id, file, title, text
    passages_fts5 full text of passages: bm25 ranking (SQLite's FTS5), what this module asks
    passages_fts4 the same for Android, whose own SQLite is built without FTS5: see ``search_terms``
    passage_terms empty; where passages_fts4 looks for what it is to forget
Neither full-text table holds a copy of the texts.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import InputError
from .progress import Progress, silent
from .search_passages import READERS, Passage, read_passages
from .search_terms import TERM_TABLES, TOKENIZER, add_terms, count_terms, prepare_terms, remove_terms, terms_bytes

SCHEMA = 2  # 1 had other terms in passages_fts4
_FILES_PER_COMMIT = 64

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL,
                    modified_ns INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE passages (id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files, title TEXT NOT NULL,
                       text TEXT NOT NULL);
CREATE INDEX passages_of_file ON passages (file);
CREATE VIRTUAL TABLE passages_fts5 USING fts5 (title, text, content='passages', content_rowid='id',
                                               tokenize='{tokenizer}');
{term_tables}
INSERT INTO meta VALUES ('schema', '{schema}'), ('state', 'partial');
"""


@dataclass(frozen=True)
class IndexReport:
    """What indexing did: files added or read again, unchanged and removed; passages now in the index; its size, and
    what the table for Android takes of it; what was left out, a line each with the reason."""

    index: Path
    added: int
    unchanged: int
    removed: int
    passages: int
    size_bytes: int
    android_bytes: int
    skipped: tuple[str, ...]


def index_folder(folder: Path, output: Path, progress: Progress = silent) -> IndexReport:
    """Index the .txt, .md and .html files below ``folder`` into the SQLite file ``output``.

    An index that is there is brought up to date: only files that changed are read. The new one replaces it in one
    step; what an interrupted run had done is kept beside it (``.partial``) and taken up by the next.

    Raises InputError if there is nothing to index, or a file cannot be written.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder with .txt, .md or .html files")
    paths = _files_below(folder)
    if not paths:
        raise InputError(f"{folder}: holds no {', '.join(READERS)} file")
    partial = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _begin(partial, output)
        with closing(sqlite3.connect(partial)) as database:
            report = _update(database, folder, paths, output, progress)
        partial.replace(output)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{output}: cannot be written ({error})") from error
    return report


def _files_below(folder: Path) -> list[Path]:
    """Files of known kinds, sorted; nothing hidden, and no link that leads out of the folder."""
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        wanted = path.suffix.lower() in READERS and not any(part.startswith(".") for part in parts)
        if wanted and path.is_file() and path.resolve().is_relative_to(root) and _is_unicode(path):
            found.append(path)
    return found


def _is_unicode(path: Path) -> bool:
    """Whether a name is text: a file system may hold names in other encodings."""
    return not any("\udc80" <= character <= "\udcff" for character in str(path))


def _begin(partial: Path, output: Path) -> None:
    """Have a file to write into: what an interrupted run left, else a copy of the index, else an empty index.

    An index of an older schema is made anew.
    """
    if partial.exists() and _schema_of_file(partial) == SCHEMA:
        return
    partial.unlink(missing_ok=True)
    schema = _schema_of_file(output) if output.exists() else 0
    if schema is None:
        raise InputError(f"{output}: exists and is no index of pocketlm; name another file with -o")
    if schema > SCHEMA:
        raise InputError(f"{output}: a newer pocketlm made it (schema {schema}); update pocketlm, or use another -o")
    if schema == SCHEMA:
        with closing(_open_read_only(output)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        return
    with closing(sqlite3.connect(partial)) as database:
        database.executescript(_TABLES.format(schema=SCHEMA, tokenizer=TOKENIZER, term_tables=TERM_TABLES))


def _schema_of_file(path: Path) -> int | None:
    """The schema of an index; None if the file is none."""
    try:
        with closing(_open_read_only(path)) as database:
            return _schema_of(database)
    except (sqlite3.Error, ValueError):
        return None


def _schema_of(database: sqlite3.Connection) -> int:
    """Raises ValueError or sqlite3.Error if this is no index."""
    row = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if row is None:
        raise ValueError("it does not say its schema")
    return int(row[0])


def _update(
    database: sqlite3.Connection, folder: Path, paths: Sequence[Path], output: Path, progress: Progress
) -> IndexReport:
    known = {row[0]: row[1:] for row in database.execute("SELECT path, id, size_bytes, modified_ns, sha256 FROM files")}
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    gone = [name for name in known if name not in names]
    prepare_terms(database)
    added, skipped = 0, list[str]()
    with progress("Indexing", len(names)) as step:
        for name in gone:
            _remove(database, known[name][0])
        for count, (name, path) in enumerate(names.items(), 1):
            try:
                added += _bring_up_to_date(database, name, path, known.get(name))
            except InputError as error:
                skipped.append(str(error))
            if count % _FILES_PER_COMMIT == 0:
                database.commit()
            step()
    with database:
        for table in ("passages_fts5", "passages_fts4"):
            database.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
        written = [("state", "complete"), ("terms", str(count_terms(database)))]
        database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", written)
    database.execute("VACUUM")
    passages = int(database.execute("SELECT count(*) FROM passages").fetchone()[0])
    unchanged = len(names) - added - len(skipped)
    size = int(database.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0])
    return IndexReport(output, added, unchanged, len(gone), passages, size, terms_bytes(database), tuple(skipped))


def _bring_up_to_date(
    database: sqlite3.Connection, name: str, path: Path, known: tuple[int, int, int, str] | None
) -> int:
    """Index one file if it is new or changed; 1 if it was read, 0 if it was known."""
    status = path.stat()
    if known is not None and known[1:3] == (status.st_size, status.st_mtime_ns):
        return 0
    try:
        passages = read_passages(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except InputError:
        if known is not None:
            _remove(database, known[0])
        raise
    if known is not None and known[3] == sha256:
        database.execute("UPDATE files SET modified_ns = ? WHERE id = ?", (status.st_mtime_ns, known[0]))
        return 0
    if known is not None:
        _remove(database, known[0])
    number = database.execute(
        "INSERT INTO files (path, size_bytes, modified_ns, sha256) VALUES (?, ?, ?, ?)",
        (name, status.st_size, status.st_mtime_ns, sha256),
    ).lastrowid
    insert = "INSERT INTO passages (file, title, text) VALUES (?, ?, ?)"
    database.executemany(insert, [(number, title, text) for title, text in passages])
    rows = _passages_of(database, number)
    database.executemany("INSERT INTO passages_fts5 (rowid, title, text) VALUES (?, ?, ?)", rows)
    add_terms(database, rows)
    return 1


def _passages_of(database: sqlite3.Connection, file: int | None) -> list[tuple[int, str, str]]:
    return database.execute("SELECT id, title, text FROM passages WHERE file = ? ORDER BY id", (file,)).fetchall()


def _remove(database: sqlite3.Connection, file: int) -> None:
    """Take a file and its passages out; the full-text tables have to be told the old texts."""
    rows = _passages_of(database, file)
    delete = "INSERT INTO passages_fts5 (passages_fts5, rowid, title, text) VALUES ('delete', ?, ?, ?)"
    database.executemany(delete, rows)
    remove_terms(database, rows)
    database.execute("DELETE FROM passages WHERE file = ?", (file,))
    database.execute("DELETE FROM files WHERE id = ?", (file,))


def _open_read_only(path: Path) -> sqlite3.Connection:
    """Open without the right to write, and without trust in what the file's own schema would run."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    return database


class IndexSource:
    """A source over an index file."""

    def __init__(self, path: Path) -> None:
        """Open; raises InputError if the file is missing or no index."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; make an index with: pocketlm index FOLDER -o {path.name}")
        self.name = path.name
        with _readable(path):
            self._database = _open_read_only(path)
            schema = _schema_of(self._database)
        if schema != SCHEMA:
            what = "make the index again with: pocketlm index" if schema < SCHEMA else "update pocketlm"
            raise InputError(f"{path}: index schema {schema}, this pocketlm reads {SCHEMA}; {what}")
        self._path = path

    def search(self, words: Sequence[str], limit: int) -> list[Passage]:
        """The passages that fit any of the words best, by bm25 with a heading's words counted twice.

        Robertson and Zaragoza 2009, as FTS5 implements it. Raises InputError if the file is damaged.
        """
        question = " OR ".join('"' + word.replace('"', '""') + '"' for word in words)
        if not question:
            return []
        with _readable(self._path):
            rows = self._database.execute(
                "SELECT passages.title, passages.text, files.path FROM passages_fts5 "
                "JOIN passages ON passages.id = passages_fts5.rowid JOIN files ON files.id = passages.file "
                "WHERE passages_fts5 MATCH ? ORDER BY bm25(passages_fts5, 2.0, 1.0), passages.id LIMIT ?",
                (question, limit),
            ).fetchall()
        return [Passage(str(title), str(text), str(source)) for title, text, source in rows]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        raise InputError(
            f"{path}: is no index or a damaged one ({error}); make it again with: pocketlm index"
        ) from error


_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_LONGEST_QUERY = 32  # words


def keywords(text: str) -> list[str]:
    """The words of a question that say what it is about, each once, in order; all its words if none does.

    Only English function words are left out. Other languages lose nothing: bm25 weighs rare words most.
    """
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(text)))
    telling = [word for word in words if word not in _function_words()]
    return (telling or words)[:_LONGEST_QUERY]


@cache
def _function_words() -> frozenset[str]:
    return frozenset((Path(__file__).parent / "data" / "function_words.txt").read_text(encoding="utf-8").split())
