"""Indexing folders, and what a search in them finds."""

import math
import random
import re
import sqlite3
import struct
from collections import Counter

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.search_index import IndexSource, index_folder, keywords
from pocketlm.runtimes.search_passages import LONGEST, read_passages

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
    database = sqlite3.connect(index)
    for table in ("passages_fts5", "passages_fts4"):
        database.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")


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


def test_deep_and_broken_html(tmp_path):
    path = tmp_path / "deep.html"
    path.write_text("<div>" * 20_000 + "<p>core</p>" + "<<b <p>unclosed")
    assert "core" in " ".join(text for _, text in read_passages(path))


def test_android_ranks_as_bm25_does(folder, tmp_path):
    """What an app computes from FTS4's matchinfo is FTS5's own order."""
    generator = random.Random(1)
    words = [f"w{number}" for number in range(60)]
    for number in range(40):
        text = " ".join(generator.choices(words, k=generator.randint(20, 90)))
        (folder / f"{number}.txt").write_text(text)
    index = index_folder(folder, tmp_path / "facts.db").index
    database = sqlite3.connect(index)
    asked = ["w1", "w7", "w30"]
    rows = database.execute(
        "SELECT docid, matchinfo(passages_fts4, 'pcnalx') FROM passages_fts4 WHERE passages_fts4 MATCH ?",
        (" OR ".join(asked),),
    ).fetchall()
    order = sorted(rows, key=lambda row: (-bm25_of_matchinfo(row[1], (2.0, 1.0)), row[0]))
    texts = [database.execute("SELECT text FROM passages WHERE id = ?", row[:1]).fetchone()[0] for row in order]
    assert texts[:5] == found(index, " ".join(asked), 5)
    assert len(texts) > 10


def bm25_of_matchinfo(blob, weights, k1=1.2, b=0.75):
    """Robertson's bm25 with FTS5's constants; columns weigh as given."""
    numbers = struct.unpack(f"{len(blob) // 4}I", blob)
    phrases, columns, rows = numbers[:3]
    average, length = sum(numbers[3 : 3 + columns]), sum(numbers[3 + columns : 3 + 2 * columns])
    hits = numbers[3 + 2 * columns :]
    score = 0.0
    for phrase in range(phrases):
        of_phrase = hits[3 * phrase * columns : 3 * (phrase + 1) * columns]
        frequency = sum(weights[column] * of_phrase[3 * column] for column in range(columns))
        documents = max(of_phrase[3 * column + 2] for column in range(columns))
        inverse = max(1e-6, math.log((rows - documents + 0.5) / (documents + 0.5)))
        score += inverse * frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * length / average))
    return score


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
    assert re.search(r"facts.db: 5 passages; 3 files read, 0 unchanged, 0 removed", capsys.readouterr().out)
    assert run(["index", str(tmp_path / "absent"), "-o", str(tmp_path / "x.db")]) == 2
    (tmp_path / "empty").mkdir()
    assert run(["index", str(tmp_path / "empty"), "-o", str(tmp_path / "x.db")]) == 2
    (tmp_path / "x.db").write_text("mine")
    assert run(["index", str(folder), "-o", str(tmp_path / "x.db")]) == 2
    assert (tmp_path / "x.db").read_text() == "mine"
    lines = capsys.readouterr().err.strip().splitlines()
    assert Counter(line.startswith("pocketlm: ") for line in lines)[True] == 3
