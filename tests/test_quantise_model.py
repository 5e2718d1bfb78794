"""From a model to canonical weights: methods, the text, and what is kept for the next time."""

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe, parse_recipe
from pocketlm.quantize.tensor import QuantizedTensor, same
from pocketlm.runtimes.progress import silent
from pocketlm.runtimes.quantise_model import open_source, write_canonical
from tiny import TEXT


@pytest.fixture(scope="module")
def checkpoint(tiny_folder):
    return open_checkpoint(str(tiny_folder))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def canonical(checkpoint, recipe, path, text=None):
    source = open_source(checkpoint, parse_config(checkpoint.config), text)
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    weights, errors, _ = write_canonical(source, chosen, path, silent)
    assert [error.name for error in errors] == list(checkpoint.names())
    return weights


def test_training_changes_scales_and_norms_but_no_code(checkpoint, cache, tmp_path):
    plain = canonical(checkpoint, parse_recipe({"method": "layerwise"}, "plain"), tmp_path / "plain")
    trained = canonical(checkpoint, "int4", tmp_path / "trained")
    assert set(plain) == set(trained)
    for name in plain:
        if not isinstance(plain[name], QuantizedTensor):
            assert plain[name].dtype == trained[name].dtype == np.float16
        elif "embed" in name:
            assert same(plain[name], trained[name])
        else:
            assert np.array_equal(plain[name].codes, trained[name].codes)
            assert not np.array_equal(plain[name].scales, trained[name].scales)


def test_what_was_done_is_taken_from_the_cache(checkpoint, cache, tmp_path):
    first = canonical(checkpoint, "int4", tmp_path / "1")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(list(cache.iterdir())) == 2  # layer by layer, and trained
    again = canonical(checkpoint, "int4", tmp_path / "2")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == before
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert set(first) == set(again)


def test_another_text_gives_other_integers(checkpoint, cache, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 30)
    own = canonical(checkpoint, "int8", tmp_path / "own", tmp_path / "text.txt")
    shipped = canonical(checkpoint, "int8", tmp_path / "shipped")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not np.array_equal(own[name].codes, shipped[name].codes)
    assert len(list(cache.iterdir())) == 2


def test_rounding_to_nearest_needs_no_cache(checkpoint, cache, tmp_path):
    canonical(checkpoint, "int4-rtn", tmp_path / "w")
    assert not cache.exists()


def test_a_text_that_cannot_be_read_is_named(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: cannot be read"):
        open_source(checkpoint, parse_config(checkpoint.config), tmp_path / "nowhere.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(InputError, match="UTF-8"):
        open_source(checkpoint, parse_config(checkpoint.config), tmp_path / "latin")
