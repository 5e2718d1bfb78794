"""`eval`: its figures against plain computations, and the command as a user meets it."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_torch import reference_logits
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.metrics import deviation, negative_log_likelihood
from pocketlm.runtimes.quality import interval, layer_errors, measure_quality, quality_steps
from pocketlm.runtimes.svg import Labels, interval_chart, line_chart, scatter
from tiny import TEXT


@pytest.fixture(scope="module")
def model(tiny_folder):
    checkpoint = open_checkpoint(str(tiny_folder))
    return parse_config(checkpoint.config), {name: checkpoint.read(name) for name in checkpoint.names()}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


def tokens():
    return np.random.default_rng(0).integers(3, 512, (5, 40))


def rounded(weights):
    return {name: round_to_nearest(w, 4, 32) if "_proj" in name else w for name, w in weights.items()}


def test_figures_are_those_of_plain_computations(model):
    config, weights = model
    quantised, ids, steps = rounded(weights), tokens(), []
    found = measure_quality({"q": quantised, "s": weights}, config, ids, "s", lambda: steps.append(1))
    expected, actual = reference_logits(weights, config, ids), reference_logits(quantised, config, ids)
    wanted = deviation(expected, actual)
    assert found["q"].kl.mean == pytest.approx(wanted.kl, rel=1e-6)
    assert found["q"].top1.mean == pytest.approx(wanted.top1)
    losses = negative_log_likelihood(actual, ids), negative_log_likelihood(expected, ids)
    assert found["q"].perplexity.mean == pytest.approx(np.exp(losses[0]), rel=1e-6)
    assert found["q"].perplexity_ratio.mean == pytest.approx(np.exp(losses[0] - losses[1]), rel=1e-6)
    assert (found["s"].kl.mean, found["s"].top1.mean, found["s"].perplexity_ratio.mean) == (0, 1, 1)
    assert len(steps) == quality_steps(2, config, ids)
    alone = measure_quality({"q": quantised}, config, ids, None, lambda: None)["q"]
    assert alone.kl is None
    assert alone.perplexity == found["q"].perplexity


def test_the_interval_is_that_of_a_mean():
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.high - found.mean == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert interval([1.0]).high == float("inf")


def test_errors_by_layer_start_where_the_weights_differ(model):
    config, weights = model
    changed = "model.layers.1.self_attn.o_proj.weight"
    found = layer_errors(weights, weights | {changed: weights[changed] * 1.1}, config, tokens())
    assert {error for name, error in found.items() if "layers.0" in name or "q_proj" in name} == {0.0}
    assert found["model.layers.1.self_attn.o_proj.output"] == pytest.approx(0.1, rel=1e-4)
    assert found["model.layers.1.mlp.down_proj.output"] > 0
    assert not any("lm_head" in name or "embed_tokens.output" in name for name in found)


def test_eval_compares_recipes_and_draws(tiny_folder, text, tmp_path, capsys):
    arguments = ["eval", str(tiny_folder), "--text", str(text), "--recipe", "int4-rtn", "--recipe", "int8-rtn"]
    assert run([*arguments, "--pictures", str(tmp_path / "p"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    four, eight = (found["candidates"][name] for name in ("int4-rtn", "int8-rtn"))
    assert four["quality"]["kl"]["mean"] > 10 * eight["quality"]["kl"]["mean"] > 0
    assert four["size_bytes"] < eight["size_bytes"]
    assert found["tokens"] >= 256
    for name in ("size_against_kl.svg", "error_by_layer.svg"):
        root = ElementTree.parse(tmp_path / "p" / name).getroot()
        assert {"int4-rtn", "int8-rtn"} <= {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "same top" in shown
    assert "gate+up" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_bundle_is_judged_by_the_weights_in_its_file(tiny_folder, text, tmp_path, capsys):
    export(str(tiny_folder), tmp_path / "b", recipe="int4-rtn", context=64)
    assert run(["eval", str(tmp_path / "b"), "--text", str(text), "--reference", str(tiny_folder), "--json"]) == 0
    bundle = json.loads(capsys.readouterr().out)["candidates"]["b"]["quality"]
    assert run(["eval", str(tiny_folder), "--text", str(text), "--recipe", "int4-rtn", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["candidates"]["int4-rtn"]["quality"]
    assert bundle == model
    assert run(["eval", str(tmp_path / "b"), "--text", str(text), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["candidates"]["b"]["quality"]
    assert alone["kl"] is None
    assert alone["perplexity"] == model["perplexity"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tiny}", "--text", "/nowhere.txt"], "/nowhere.txt: cannot be read"),
        (["{tiny}", "--text", "{short}"], "too short"),
        (["{tiny}", "--text", "{text}", "--recipe", "int5"], "no recipe 'int5'"),
        (["{tiny}", "--text", "{text}", "--reference", "{tiny}"], "leave --reference out"),
        (["{tiny}", "--text", "{text}", "--pictures", "{out}"], "nothing to draw"),
    ],
)
def test_bad_input_of_eval_is_one_line(tiny_folder, text, tmp_path, capsys, arguments, expected):
    (tmp_path / "short").write_text("Too short.")
    places = {"tiny": tiny_folder, "text": text, "short": tmp_path / "short", "out": tmp_path / "out"}
    assert run(["eval", *(argument.format(**places) for argument in arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pocketlm:")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_pictures_are_sound_svg_whatever_the_names():
    for picture in (
        scatter(Labels("a < b", "x & y", '"z"'), {"<one>": (1.0, 0.5)}),
        line_chart(Labels("t", "x", "y"), {f"line {index}": [(0.0, 0.0), (1.0, float(index))] for index in range(9)}),
        line_chart(Labels("empty", "x", "y"), {}),
        interval_chart(Labels("a < b", "x", ""), {"<one>": (0.5, 0.25, 0.75), "two & three": (0.0, 0.0, 0.0)}, 1),
        interval_chart(Labels("empty", "x", ""), {}),
    ):
        assert ElementTree.fromstring(picture).tag.endswith("svg")
