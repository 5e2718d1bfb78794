"""The files that tests of all languages share are what their script writes, and Python agrees with them."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.int8_cache import greedy, write_model
from golden.make import FACTS, FOLDER, INT8_CACHE, SMOLLM2, contents, smollm2_content
from golden.search import write_facts
from golden.vectors import generated
from pocketlm.errors import InputError
from pocketlm.export.bundle import changed_files, read_manifest
from pocketlm.runtimes.golden import read_golden, replay_kl
from pocketlm.runtimes.tokenizer import StreamDecoder, load_tokenizer
from pocketlm.runtimes.verify import check_targets

GOOD = FOLDER / "bundle" / "good"


@cache
def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_files_are_what_the_script_writes() -> None:
    for name, text in contents().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name} is out of date; run: make golden"


def test_the_index_is_what_the_script_writes(tmp_path: Path) -> None:
    """Not byte for byte: SQLite writes its version into a file."""
    write_facts(tmp_path / FACTS)
    assert tables(tmp_path / FACTS) == tables(FOLDER / FACTS), "facts.db is out of date; run: make golden"


def test_the_model_with_an_int8_cache_is_what_the_script_writes(tmp_path: Path) -> None:
    write_model(tmp_path)
    data = "model.onnx.data"
    written, kept = ((folder / data).read_bytes() for folder in (tmp_path, FOLDER / INT8_CACHE / "onnx"))
    assert written == kept, "int8_cache is out of date; run: make golden"
    found = greedy(tmp_path)
    assert found == greedy(FOLDER / INT8_CACHE / "onnx") == read(f"{INT8_CACHE}/greedy.json")
    assert len(set(found["continuation"])) > 4, "it says the same again and again: the cache hardly matters"


def tables(path: Path) -> list[list[tuple[Any, ...]]]:
    """What an index holds."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE VIRTUAL TABLE temp.four USING fts4aux (main, passages_fts4)")
        database.execute("CREATE VIRTUAL TABLE temp.five USING fts5vocab (main, passages_fts5, instance)")
        of = {"meta": "*", "files": "*", "passages": "*", "passage_terms": "*", "four": "CAST(term AS BLOB), *",
              "five": "CAST(term AS BLOB), doc, col, offset"}  # fmt: skip
        database.text_factory = bytes
        return [
            database.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall() for table, columns in of.items()
        ]


@pytest.mark.parametrize(
    "path",
    [
        "android_demo/core/src/main/kotlin/org/pocketlm/core/search/Keywords.kt",
        "ios_demo/Sources/PocketCore/Search/Keywords.swift",
    ],
)
def test_apps_leave_the_same_words_out_of_queries(path: str) -> None:
    root = FOLDER.parents[1]
    source = (root / path).read_text(encoding="utf-8")
    listed = source[source.index("a about an") : source.index(" your") + len(" your")]
    words = (root / "runtimes" / "data" / "function_words.txt").read_text(encoding="utf-8").split()
    assert re.findall(r"[a-z]+", listed) == words


@pytest.mark.end_to_end
def test_ids_of_smollm2_are_what_the_script_writes() -> None:
    assert (FOLDER / SMOLLM2).read_text(encoding="utf-8") == smollm2_content()


@pytest.mark.parametrize("kind", ["llama_2", "smollm2"])
def test_streams_show_what_their_tokens_mean(kind: str) -> None:
    tokenizer = load_tokenizer_of(kind)
    for stream in read("awkward_ids.json")[kind]["streams"]:
        decoder = StreamDecoder(tokenizer)
        assert [*map(decoder.add, stream["tokens"]), decoder.finish()] == stream["pieces"]


def load_tokenizer_of(kind: str) -> Any:
    from pocketlm.runtimes.tokenizer import Tokenizer

    return Tokenizer((FOLDER / "tokenizers" / f"{kind}.json").read_text(encoding="utf-8"))


def test_smollm2_agrees_with_its_first_vectors() -> None:
    """Those of tests/data were written from another source than the GGUF file."""
    known = {
        entry["text"]: entry["ids"] for entry in json.loads((FOLDER.parent / "data/smollm2_tokens.json").read_text())
    }
    texts = {entry["name"]: entry["text"] for entry in read("awkward.json")["texts"]}
    common = [case for case in read(SMOLLM2)["smollm2-135m"]["cases"] if texts[case["name"]] in known]
    assert common
    for case in common:
        assert case.get("template", case["user"]) == known[texts[case["name"]]]


def test_the_good_bundle_is_good() -> None:
    manifest = read_manifest(GOOD)
    assert changed_files(GOOD, manifest) == []
    assert check_targets(GOOD, manifest, None) == ("onnx",)
    tokenizer = load_tokenizer(GOOD)
    golden = read_golden(GOOD)
    assert tokenizer.decode(golden.evaluation.tokens[0].tolist()).startswith(golden.prompts[0])


@pytest.mark.parametrize("case", read("bundle/broken.json"), ids=lambda case: case["name"])
def test_broken_bundles_are_refused(case: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(GOOD, tmp_path / "b")
    if "manifest" in case:
        patched = merge_patch(json.loads((folder / "pocketlm.json").read_text()), case["manifest"])
        (folder / "pocketlm.json").write_text(json.dumps(patched))
    for name, text in case.get("files", {}).items():
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(InputError) as caught:
        check(folder)
    message = str(caught.value)
    assert all(word in message for word in case["words"]), message
    assert "\n" not in message


def check(folder: Path) -> None:
    """What is refused before a model is run, as `pocketlm verify` does it."""
    manifest = read_manifest(folder)
    check_targets(folder, manifest, None)
    changed = changed_files(folder, manifest)
    if changed:
        raise InputError(f"{changed[0]} is missing or was changed")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


@pytest.mark.parametrize("case", read("replay.json")["cases"], ids=lambda case: case["name"])
def test_replays(case: dict[str, Any]) -> None:
    target = read_golden(GOOD).targets["onnx"]
    size = read("replay.json")["vocab_size"]
    logits = np.array([[generated(rows, size) for rows in sequence] for sequence in case["rows"]])
    kl = replay_kl(target["expected"], logits)
    assert kl == pytest.approx(case["kl"], rel=1e-9, abs=1e-12)
    assert (kl <= target["tolerance_kl"]) == case["passes"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_never_passes(value: float) -> None:
    target = read_golden(GOOD).targets["onnx"]
    rows = read("replay.json")["cases"][0]["rows"]
    logits = np.array([[generated(row, read("replay.json")["vocab_size"]) for row in sequence] for sequence in rows])
    logits[1, 2, target["expected"][1][2]["ids"][0]] = value
    with np.errstate(invalid="ignore"):
        assert not replay_kl(target["expected"], logits) <= target["tolerance_kl"]
