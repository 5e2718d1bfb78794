"""What a plan says of an artifact's size, against the artifacts that the writers write."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pocketlm.export.config import parse_config
from pocketlm.export.to_onnx import write_onnx
from pocketlm.quantize.cache import INT8_CHANNEL, PARTS, scale_name
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes.plan import plan
from pocketlm.runtimes.plan_sizes import artifact_bytes
from pocketlm.runtimes.plan_storage import describe_storage
from scratch import scratch_folder
from tiny import tiny_llama
from tiny_families import CONTEXT, NAMES, artifact, canonical, family_folder

WITHIN = 0.02
GENAI_CONFIG_BYTES = 1100  # also copied by the bundle's writer


def written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def planned_bytes(model, target, recipe, context):
    """Of what the target's writer alone writes: no tokenizer beside it, which the bundle's writer copies."""
    found = plan(str(model), recipe=recipe, context=context, to=[target]).targets[target].artifact_bytes
    if target != "onnx" or "openelm" in (model / "config.json").read_text():
        return found
    beside = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return found - sum((model / name).stat().st_size for name in beside) - GENAI_CONFIG_BYTES


@pytest.mark.parametrize("recipe", ["int4-rtn", "int8-rtn", "fp16", "fp32"])
@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_sizes_of_every_family(target, recipe):
    for name in NAMES:
        written = written_bytes(artifact(name, target, recipe))
        planned = planned_bytes(family_folder(name), target, recipe, CONTEXT)
        assert planned == pytest.approx(written, rel=WITHIN), name


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "openelm"])
def test_sizes_with_an_int8_cache(name):
    config, weights = canonical(name, "int4-rtn")
    ones = [np.ones(layer.attention.kv_width, np.float32) for layer in config.layers]
    scales = {scale_name(layer, part): scale for layer, scale in enumerate(ones) for part in PARTS}
    folder = scratch_folder()
    write_onnx(folder, config, weights | scales, CONTEXT, INT8_CHANNEL)
    stored = describe_storage(config, load_recipe("int4-rtn"), CONTEXT, frozenset(), "int8")
    grown = artifact_bytes("onnx", stored, 0) - artifact_bytes("onnx", replace(stored, cache="float"), 0)
    before = written_bytes(artifact(name, "onnx", "int4-rtn"))
    assert before + grown == pytest.approx(written_bytes(folder), rel=WITHIN / 4)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "mixtral", "gpt2", "openelm"])
def test_sizes_of_core_ml_packages(name):
    written = written_bytes(artifact(name, "coreml", "int4-rtn"))
    assert planned_bytes(family_folder(name), "coreml", "int4-rtn", CONTEXT) == pytest.approx(written, rel=WITHIN)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx", {"layers": 7, "tied": True, "heads": 2, "kv_heads": 1}),
        ("onnx", {"layers": 3, "hidden": 128, "vocab": 1000, "mlp_bias": True, "attention_bias": True}),
        ("executorch", {"layers": 5, "hidden": 96, "vocab": 700, "attention_bias": True}),
        ("executorch", {"layers": 2, "tied": True, "intermediate": 352}),
    ],
)
def test_sizes_of_shapes_that_nothing_was_fitted_to(target, options):
    from pocketlm.export.canonical import quantize_checkpoint
    from pocketlm.export.open_checkpoint import open_checkpoint
    from pocketlm.runtimes.target import Details
    from pocketlm.runtimes.targets import get_target

    model, folder = tiny_llama(scratch_folder(), **options), scratch_folder()
    checkpoint = open_checkpoint(str(model))
    config = parse_config(checkpoint.config, 200)
    weights = dict(
        quantize_checkpoint(checkpoint, list(checkpoint.names()), load_recipe("int4-rtn"), lambda error: None)
    )
    get_target(target).write(folder, config, weights, 200, Details(1, (2,)))
    assert planned_bytes(model, target, "int4-rtn", 200) == pytest.approx(written_bytes(folder), rel=WITHIN)


def test_the_demo_model_comes_to_what_the_readme_shows():
    found = plan("smollm2-135m", recipe="int4-rtn").targets
    sizes = {name: round(target.artifact_bytes / 1e6, 1) for name, target in found.items()}
    assert sizes == {"onnx": 99.2, "executorch": 89.7, "coreml": 90.3}


@pytest.mark.parametrize("name", NAMES)
def test_biases_are_those_of_the_files(name):
    from pocketlm.runtimes.plan_model import describe_model

    config, weights = canonical(name)
    stored = {bias.removesuffix("bias") + "weight" for bias in weights if bias.endswith("_proj.bias")}
    assert describe_model(str(family_folder(name))).biases(config) == stored


def test_a_recipe_with_mixed_formats(tmp_path):
    """Codes and scales to the byte: 8 more bits for each of the layer's values, and other scales."""
    recipe = tmp_path / "mixed.toml"
    recipe.write_text('base = "int4-rtn"\n[overrides]\n"model.layers.0.mlp.*" = { kind = "int8" }\n')
    raw = json.loads((family_folder("qwen2") / "config.json").read_text())
    config = parse_config(raw, CONTEXT)
    plain, mixed = (
        artifact_bytes("executorch", describe_storage(config, load_recipe(name), CONTEXT, frozenset()), 0)
        for name in ("int4-rtn", str(recipe))
    )
    values, rows = 3 * 64 * 96, 96 + 96 + 64
    # Segments begin at multiples of 128.
    assert mixed - plain == pytest.approx(values // 2 + 4 * rows - 2 * values // 32, abs=3 * 128)
