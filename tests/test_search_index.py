"""Indexing folders, and what a search in them finds."""

import math
import random
import re
import sqlite3
import struct
from collections import Counter
from contextlib import closing

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.search_index import IndexSource, index_folder, keywords
from pocketlm.runtimes.search_passages import LONGEST, LONGEST_TITLE, READERS, read_passages

PAGE = """<!doctype html><html><head><title>Birds</title><script>alert("x")</script></head><body><nav>Menu</nav>
<h1>Swifts</h1><p>The common swift sleeps on the wing.</p><div><ul><li>It eats insects.</li></ul></div>
<h2>Nests</h2><p>Nests are built under roofs &amp; tiles.</p></body></html>"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "sea.txt").write_text("The tide follows the moon.\r\n\r\nHerring swim in shoals.\n")
    (folder / "hills.md").write_text("# Hills\n\nBen Nevis is 1345 metres high.\n\n## Sheep\n\nSheep graze *there*.\n")
    (folder / "birds.html").write_text(PAGE)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("secret heron")
    return folder


def found(index, question, limit=3):
    return [passage.text for passage in IndexSource(index).search(keywords(question), limit)]


def test_what_is_found(folder, tmp_path):
    report = index_folder(folder, tmp_path / "facts.db")
    assert (report.added, report.unchanged, report.removed, report.skipped) == (3, 0, 0, ())
    assert found(report.index, "How high is Ben Nevis?") == ["Ben Nevis is 1345 metres high."]
    assert found(report.index, "Where do swifts build nests?", 1) == ["Nests are built under roofs & tiles."]
    assert "sleeps on the wing. It eats insects." in found(report.index, "Which insect do swifts eat?")[0]
    assert found(report.index, "What swims?") == ["The tide follows the moon. Herring swim in shoals."]  # by its stem
    passage = IndexSource(report.index).search(["nests"], 1)[0]
    assert (passage.title, passage.source) == ("Nests", "birds.html")
    for absent in ("alert", "Menu", "heron", "PNG"):
        assert found(report.index, absent) == []


@pytest.mark.parametrize(
    "question", ['"', "a AND", "NEAR(", "*", "swift OR (", "title:", "'; DROP TABLE passages; --", "ß"]
)
def test_questions_are_words_and_never_syntax(folder, tmp_path, question):
    index = index_folder(folder, tmp_path / "facts.db").index
    IndexSource(index).search(keywords(question) or [question], 3)
    assert IndexSource(index).search([question], 3) is not None
    assert len(found(index, "tide moon herring")) == 1


def test_only_what_changed_is_read_again(folder, tmp_path):
    index = index_folder(folder, tmp_path / "facts.db").index
    (folder / "sea.txt").write_text("Eels go to the Sargasso.\n")
    (folder / "hills.md").unlink()
    (folder / "new.txt").write_text("Puffins dig burrows.\n")
    report = index_folder(folder, index)
    assert (report.added, report.unchanged, report.removed) == (2, 1, 1)
    assert found(index, "moon") == found(index, "Nevis") == []
    assert found(index, "Sargasso") == ["Eels go to the Sargasso."]
    assert found(index, "puffin") == ["Puffins dig burrows."]
    check_tables(index)


def test_an_update_gives_what_a_new_index_gives(folder, tmp_path):
    index = index_folder(folder, tmp_path / "a.db").index
    (folder / "sea.txt").write_text("Moon jellies drift.\n")
    index_folder(folder, index)
    fresh = index_folder(folder, tmp_path / "b.db").index
    for question in ("moon", "swift", "sheep graze", "tide"):
        assert found(index, question) == found(fresh, question)


def test_an_interrupted_run_is_taken_up(folder, tmp_path, monkeypatch):
    for number in range(200):
        (folder / f"{number:03}.txt").write_text(f"Number {number} stands here.\n")
    read = []

    def counting(path):
        read.append(path.name)
        if len(read) == 150:
            raise KeyboardInterrupt
        return read_passages(path)

    monkeypatch.setattr("pocketlm.runtimes.search_index.read_passages", counting)
    with pytest.raises(KeyboardInterrupt):
        index_folder(folder, tmp_path / "facts.db")
    assert not (tmp_path / "facts.db").exists()
    read.clear()
    monkeypatch.setattr(
        "pocketlm.runtimes.search_index.read_passages", lambda path: read.append(1) or read_passages(path)
    )
    report = index_folder(folder, tmp_path / "facts.db")
    assert len(read) == 203 - 128  # two commits of 64 files were kept
    assert report.passages == 200 + 5
    assert not (tmp_path / "facts.db.partial").exists()


def test_files_that_cannot_be_read_are_left_out_and_said(folder, tmp_path):
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "zero.txt").write_bytes(b"a\0b")
    (folder / "out.txt").symlink_to("/etc/passwd")
    report = index_folder(folder, tmp_path / "facts.db")
    assert len(report.skipped) == 2
    assert any("latin.txt: is not UTF-8" in line for line in report.skipped)
    assert found(report.index, "root") == []


def test_paragraphs_are_joined_and_cut(tmp_path):
    path = tmp_path / "long.txt"
    sentences = [f"Sentence number {number} says a little." for number in range(200)]
    path.write_text(" ".join(sentences) + "\n\n" + "x" * 3000)
    texts = [text for _, text in read_passages(path)]
    assert all(len(text) <= LONGEST for text in texts)
    assert "".join(texts).replace(" ", "") == (" ".join(sentences) + "x" * 3000).replace(" ", "")
    assert all(text.startswith("Sentence") and text.endswith(".") for text in texts[:5])


def test_a_heading_leaves_room_for_its_text(tmp_path):
    (tmp_path / "a.md").write_text("# " + "Heading " * 20_000 + "\n\nText.", encoding="utf-8")
    assert [(len(title), text) for title, text in read_passages(tmp_path / "a.md")] == [(LONGEST_TITLE, "Text.")]


def test_text_around_inner_blocks_is_kept():
    page = "<title>T</title>intro<p>left open<h2>Two</h2><!-- no --><p>a <b>bold</b> word"
    page += "<ul><li>one<li>two</ul>end</p>last"
    assert list(READERS[".html"](page, "x")) == [
        ("T", "intro"), ("T", "left open"), ("Two", "a bold word"), ("Two", "one"), ("Two", "two"), ("Two", "end"),
        ("Two", "last"),
    ]  # fmt: skip


def test_a_comment_that_nobody_closes_lasts_to_the_end():
    """Looking for an end from each start would take longer than a test may."""
    assert list(READERS[".html"]("<p>a<!-- x --> b</p>" + "<!--" * 100_000, "x")) == [("x", "a b")]


def test_deep_and_broken_html(tmp_path):
    path = tmp_path / "deep.html"
    path.write_text("<div>" * 20_000 + "<p>core</p>" + "<<b <p>unclosed")
    assert "core" in " ".join(text for _, text in read_passages(path))


def vocabularies(index):
    """Of both full-text tables: {(term, column): (passages, occurrences)}."""
    database = sqlite3.connect(index)
    database.execute("CREATE VIRTUAL TABLE temp.five USING fts5vocab (main, passages_fts5, col)")
    database.execute("CREATE VIRTUAL TABLE temp.four USING fts4aux (main, passages_fts4)")
    five = database.execute("SELECT CAST(term AS BLOB), col, doc, cnt FROM five")
    four = database.execute("SELECT CAST(term AS BLOB), col, documents, occurrences FROM four WHERE col <> '*'")
    columns = ("title", "text")
    return {row[:2]: row[2:] for row in five}, {(row[0], columns[int(row[1])]): row[2:] for row in four}


def check_tables(index):
    """Both full-text tables hold the same, and it is what the passages say."""
    five, four = vocabularies(index)
    assert five == four
    with closing(sqlite3.connect(index, isolation_level=None)) as database:
        database.execute("INSERT INTO passages_fts5 (passages_fts5) VALUES ('integrity-check')")
        total = database.execute("SELECT value FROM meta WHERE key = 'terms'").fetchone()[0]
        assert int(total) == sum(occurrences for _, occurrences in five.values())
        assert database.execute("SELECT count(*) FROM passage_terms").fetchone() == (0,)


def test_both_tables_stay_in_step(folder, tmp_path):
    """Through files that are added, changed, removed and renamed, with titles and texts of all kinds."""
    generator, index = random.Random(2), tmp_path / "facts.db"
    for _ in range(12):
        for number in generator.sample(range(12), 4):
            path = folder / f"{number}.md"
            if path.exists() and generator.random() < 0.4:
                path.unlink()
            else:
                path.write_text(f"# {random_text(generator, 3)}\n\n{random_text(generator, 50)}\n")
        index_folder(folder, index)
        check_tables(index)
    fresh = index_folder(folder, tmp_path / "fresh.db").index
    assert vocabularies(index) == vocabularies(fresh)


WORDS = re.findall(
    r"\S+",
    "running runs ran relational nests “nested” nesting naïve naive NAÏVE Straße GPT-4's GPT 4 O’Neill C++ x² Привет "
    "привет 東京タワー 丸 a丸ed e-mail foo_bar ½ ﬁsh 🦊 caresses ponies 1990s 1990 hopping falling hissing sky is at",
)


def random_text(generator, length):
    return " ".join(generator.choices(WORDS, k=generator.randint(1, length)))


def test_android_finds_what_fts5_finds_with_the_same_scores(folder, tmp_path):
    """What ``search_terms`` tells apps to compute."""
    generator = random.Random(1)
    for number in range(60):
        (folder / f"{number}.md").write_text(f"# {random_text(generator, 3)}\n\n{random_text(generator, 80)}")
    index = index_folder(folder, tmp_path / "facts.db").index
    found = 0
    for _ in range(100):
        words = keywords(" ".join(generator.choices([*WORDS, "absent", "nested nests", "tide"], k=3)))
        expected, scores = scores_of_fts5(index, words), scores_of_fts4(index, words)
        assert scores == pytest.approx(expected, rel=1e-12)
        assert sorted(scores, key=lambda number: (-scores[number], number)) == list(expected)
        found += len(expected) > 3
    assert found > 50


def scores_of_fts5(index, words):
    question = " OR ".join(f'"{word}"' for word in words)
    rows = sqlite3.connect(index).execute(
        "SELECT rowid, -bm25(passages_fts5, 2.0, 1.0) AS score FROM passages_fts5 WHERE passages_fts5 MATCH ? "
        "ORDER BY score DESC, rowid",
        (question,),
    )
    return dict(rows.fetchall())


def scores_of_fts4(index, words):
    """By a connection that knows FTS4, and a stemmer: FTS5's."""
    database = sqlite3.connect(index)
    terms = int(database.execute("SELECT value FROM meta WHERE key = 'terms'").fetchone()[0])
    scores = Counter()
    for word in words:
        phrase = b'"' + b" ".join(stems(word)) + b'"'
        rows = database.execute(
            "SELECT docid, matchinfo(passages_fts4, 'nlx') FROM passages_fts4 "
            "WHERE passages_fts4 MATCH CAST(? AS TEXT)",
            (phrase,),
        ).fetchall()
        for number, blob in rows:
            passages, *lengths, in_title, _, _, in_text, _, _ = struct.unpack("9I", blob)
            inverse = max(1e-6, math.log((passages - len(rows) + 0.5) / (len(rows) + 0.5)))
            frequency = 2.0 * in_title + in_text
            longer = 1 - 0.75 + 0.75 * sum(lengths) / (terms / passages)
            scores[number] += inverse * (frequency * 2.2 / (frequency + 1.2 * longer))
    return dict(scores)


def stems(word):
    """The terms of a word, split as FTS4 splits and stemmed one by one."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE parts USING fts3tokenize (unicode61)")
    database.execute("CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize='porter unicode61')")
    database.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (texts, instance)")
    found = []
    for (part,) in database.execute("SELECT token FROM parts WHERE input = ? ORDER BY position", (word,)).fetchall():
        database.execute("DELETE FROM texts")
        database.execute("INSERT INTO texts VALUES (?)", (part,))
        found += [row[0] for row in database.execute("SELECT CAST(term AS BLOB) FROM terms")]
    return found


def test_the_size_is_reported(folder, tmp_path):
    (folder / "long.txt").write_text("\n\n".join(f"{number} " + "word " * 200 for number in range(300)))
    report = index_folder(folder, tmp_path / "facts.db")
    assert report.size_bytes == report.index.stat().st_size
    with closing(sqlite3.connect(report.index, isolation_level=None)) as database:
        database.execute("DROP TABLE passages_fts4")
        database.execute("VACUUM")
    saved = report.size_bytes - report.index.stat().st_size
    assert saved * 0.7 < report.android_bytes < saved


def test_fts4_splits_and_folds_as_fts5_does():
    """Every character: else the words of a query would be other terms on Android."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE four USING fts3tokenize (unicode61)")
    database.execute("CREATE VIRTUAL TABLE texts USING fts5 (text, content='', tokenize=unicode61)")
    database.execute("CREATE VIRTUAL TABLE five USING fts5vocab (texts, instance)")
    characters = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 2048):
        text = " ".join(f"q{character}z" for character in characters[start : start + 2048])
        database.execute("INSERT INTO texts (texts) VALUES ('delete-all')")
        database.execute("INSERT INTO texts (rowid, text) VALUES (1, ?)", (text,))
        four = database.execute("SELECT token FROM four WHERE input = ? ORDER BY position", (text,)).fetchall()
        assert four == database.execute("SELECT term FROM five ORDER BY offset").fetchall()


def test_an_index_of_the_schema_before_is_refused_or_made_anew(folder, tmp_path):
    index = index_folder(folder, tmp_path / "facts.db").index
    for schema, message in ((1, "index schema 1, .* reads 2; make the index again"), (3, "update pocketlm")):
        with closing(sqlite3.connect(index, isolation_level=None)) as database:
            database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (schema,))
        with pytest.raises(InputError, match=message):
            IndexSource(index)
        if schema == 1:
            report = index_folder(folder, index)
            assert (report.added, report.unchanged) == (3, 0)
            check_tables(index)
        else:
            with pytest.raises(InputError, match="newer pocketlm"):
                index_folder(folder, index)
    assert not index.with_name("facts.db.partial").exists()


def test_keywords():
    assert keywords("What is the capital of France?") == ["capital", "france"]
    assert keywords("Who are you?") == ["who", "are", "you"]
    assert keywords("GPT-4's O'Neill, café") == ["gpt-4's", "o'neill", "café"]
    assert keywords("¿?") == []
    assert len(keywords(" ".join(map(str, range(1000))))) == 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("hello"), "no index"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.commit(), "no index"),
    ],
)
def test_what_is_no_index(tmp_path, capsys, make, message):
    path = tmp_path / "facts.db"
    make(path)
    with pytest.raises(InputError, match=message):
        IndexSource(path)


def test_a_damaged_index_is_one_line(folder, tmp_path):
    index = index_folder(folder, tmp_path / "facts.db").index
    content = bytearray(index.read_bytes())
    for start in range(8192, len(content), 4096):
        content[start : start + 512] = b"\xff" * 512
    index.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        IndexSource(index).search(["moon"], 3)


def test_command_line(folder, tmp_path, capsys):
    assert run(["index", str(folder), "-o", str(tmp_path / "facts.db")]) == 0
    assert re.search(
        r"facts.db: 5 passages, 0\.1 MB \(0\.0 MB of them for Android\); 3 files read, 0 unchanged, 0 removed",
        capsys.readouterr().out,
    )
    assert run(["index", str(tmp_path / "absent"), "-o", str(tmp_path / "x.db")]) == 2
    (tmp_path / "empty").mkdir()
    assert run(["index", str(tmp_path / "empty"), "-o", str(tmp_path / "x.db")]) == 2
    (tmp_path / "x.db").write_text("mine")
    assert run(["index", str(folder), "-o", str(tmp_path / "x.db")]) == 2
    assert (tmp_path / "x.db").read_text() == "mine"
    lines = capsys.readouterr().err.strip().splitlines()
    assert Counter(line.startswith("pocketlm: ") for line in lines)[True] == 3
