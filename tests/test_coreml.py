"""The Core ML target: what is written, what is read back, what it computes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from coreml_models import CHUNK, CONTEXT, FUNCTIONS, RECIPES, blob, edit, model, operation, package, source, token_ids
from pocketlm.errors import InputError
from pocketlm.export import apple
from pocketlm.export.bundle import fingerprint
from pocketlm.export.to_coreml import write_coreml
from pocketlm.export.to_torch import reference_logits
from pocketlm.quantize.store import pack_int4
from pocketlm.quantize.tensor import QuantizedTensor
from pocketlm.runtimes.coreml_exact import interpreted_logits
from pocketlm.runtimes.coreml_lint import BLOCKS, FLEXIBLE, RANK, STATE_SHAPE, STATE_SIZE, WIDTH, lint
from pocketlm.runtimes.coreml_session import PACKAGE, open_coreml
from pocketlm.runtimes.coreml_target import COREML
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.mil_interpreter import Interpreter
from pocketlm.runtimes.mil_package import MilPackage

FLEXIBLE_ONLY = (apple.FLEXIBLE,)
ALL = (*FUNCTIONS, apple.FLEXIBLE)


def transformers_logits(folder, ids, weights):
    """What transformers computes with the canonical weights."""
    import torch
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = {
        name: torch.from_numpy(np.asarray(w.dequantize() if isinstance(w, QuantizedTensor) else w, np.float32))
        for name, w in weights.items()
    }
    oracle.load_state_dict(state, strict=False)
    with torch.inference_mode():
        return oracle(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize(
    ("recipe", "tied", "biased", "functions"),
    [
        ("fp32", True, False, FUNCTIONS),
        ("fp32", False, True, FLEXIBLE_ONLY),
        ("fp16", False, True, FUNCTIONS),
        ("int4", True, False, ALL),
        ("int8", True, False, FLEXIBLE_ONLY),
        ("mixed", False, True, FUNCTIONS),
    ],
)
def test_exact_evaluation_equals_transformers_in_prefill_and_decode(recipe, tied, biased, functions):
    folder, config, weights = package(recipe, tied, biased, functions)
    ids = token_ids()
    expected = transformers_logits(source(tied, biased), ids, weights)
    assert np.abs(COREML.exact_logits(folder, config, ids) - expected).max() <= 1e-4


@pytest.mark.parametrize("recipe", [*RECIPES, "flexible"])
def test_codes_scales_and_constants_are_read_back_bit_for_bit(recipe):
    if recipe == "flexible":
        folder, config, weights = package("int4", functions=ALL)
    else:
        folder, config, weights = package(recipe, recipe != "mixed", recipe == "mixed")
    prints = {name: fingerprint(weight) for name, weight in weights.items()}
    identity = check_identity(COREML.read_back(folder, config), prints, config)
    assert identity.differences == ()
    assert identity.tensors_checked == 15 + (recipe == "mixed")


@pytest.mark.parametrize(
    ("recipe", "name"), [("int4", "model.layers.1.mlp.down_proj.weight"), ("int8", "model.embed_tokens.weight")]
)
def test_weights_lie_in_the_file_as_documented(tmp_path, recipe, name):
    """Low nibble first, two's complement; scales fp16, which holds every canonical scale exactly."""
    config, weights = model(recipe)
    write_coreml(tmp_path, config, weights, CONTEXT, functions=FUNCTIONS)
    codes, scales = weights[name].codes, weights[name].scales
    expected = pack_int4(codes) ^ np.uint8(0x88) if weights[name].bits == 4 else codes.view(np.uint8)
    value = apple.identifier(name)
    assert np.array_equal(blob(tmp_path, value, "data"), expected.reshape(-1))
    assert np.array_equal(blob(tmp_path, value, "scale").view(np.float16), scales.reshape(-1))


def test_functions_share_their_weights_and_the_tied_table_is_stored_once():
    folder, _, weights = package("int4", functions=ALL)
    expected = sum(
        weight.codes.size * weight.bits // 8 + 2 * weight.scales.size
        if isinstance(weight, QuantizedTensor)
        else weight.nbytes
        for weight in weights.values()
    )
    rotary = 2 * CONTEXT * 8 * 4
    assert (
        MilPackage(folder / PACKAGE).weights_path.stat().st_size <= expected + rotary + 64 * 128
    )  # headers, alignment


def test_description_follows_swift_transformers():
    folder, config, _ = package("int4", functions=FLEXIBLE_ONLY)
    description = MilPackage(folder / PACKAGE).spec.description
    assert [feature.name for feature in description.input] == ["inputIds", "causalMask"]
    assert [feature.name for feature in description.output] == ["logits"]
    assert [feature.name for feature in description.state] == ["keyCache", "valueCache"]
    ranges = description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert [(r.lowerBound, r.upperBound) for r in ranges] == [(1, 1), (1, CONTEXT)]
    assert list(description.state[0].type.stateType.arrayType.shape) == [2, config.attention.kv_heads, 96, 16]


def test_called_as_swift_transformers_calls_it():
    """LanguageModelWithStatefulKVCache: all tokens first, then the last one; masks one wider than the text."""
    folder, config, weights = package("int4", functions=FLEXIBLE_ONLY)
    ids = token_ids(20).astype(np.int32)
    expected = reference_logits(weights, config, ids.astype(np.int64))[0]
    interpreter = Interpreter(folder / PACKAGE, exact=True)
    state = interpreter.new_state()
    for count in range(12, 21):
        tokens = ids[:, :12] if count == 12 else ids[:, count - 1 : count]
        inputs = {"inputIds": tokens, "causalMask": np.zeros((1, 1, 1, count + 1), np.float16)}
        logits = interpreter.run("main", inputs, state)["logits"][0, -1]
        assert np.abs(logits - expected[count - 1]).max() <= 1e-4


def test_metadata_and_licence(tmp_path):
    config, weights = model("int8")
    options = {"metadata": {"pocketlm.recipe": "int8"}, "licence": "Apache-2.0", "description": "tiny"}
    write_coreml(tmp_path, config, weights, CONTEXT, **options)
    spec = MilPackage(tmp_path / PACKAGE).spec.description
    assert spec.metadata.license == "Apache-2.0"
    assert spec.metadata.shortDescription == "tiny"
    held = dict(spec.metadata.userDefined)
    assert (held["pocketlm.context"], held["pocketlm.vocabulary"], held["pocketlm.recipe"]) == ("96", "320", "int8")
    assert held["pocketlm.compute_units"] == "all"
    assert held["pocketlm.version"]
    assert [function.name for function in spec.functions] == ["decode", "prefill"]
    assert spec.defaultFunctionName == "decode"
    blockwise = MilPackage(package("int4")[0] / PACKAGE).metadata
    assert blockwise["pocketlm.compute_units"] == "cpuAndGPU"


def test_a_session_prefills_in_chunks_and_reaches_the_end_of_its_context():
    folder, config, weights = package("int4")
    ids = token_ids(CONTEXT)
    expected = COREML.emulate(weights, config, ids)[0]
    session = open_coreml(folder)
    assert (session.context, session.vocab_size, session.position) == (CONTEXT, 320, 0)
    scale = np.abs(expected).max()
    for prompt in (1, CHUNK, CHUNK + 3, CONTEXT - 1):  # the last one ends where no whole chunk fits
        session.reset()
        assert np.abs(session.run(ids[0, :prompt].tolist()) - expected[prompt - 1]).max() <= 0.01 * scale
        for position in range(prompt, min(prompt + 3, CONTEXT)):
            assert np.abs(session.run([int(ids[0, position])]) - expected[position]).max() <= 0.01 * scale
    assert session.position == CONTEXT
    with pytest.raises(InputError, match="97 tokens do not fit the context of 96"):
        session.run([3])
    session.reset()
    for tokens, message in (([], "no tokens"), ([320], "outside the vocabulary")):
        with pytest.raises(InputError, match=message):
            session.run(tokens)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp16_interpretation_agrees_with_the_emulation(recipe):
    folder, config, weights = package(recipe, recipe != "mixed", recipe == "mixed")
    ids = token_ids()
    expected = COREML.emulate(weights, config, ids)
    actual = interpreted_logits(Interpreter(folder / PACKAGE, exact=False), ids)
    exact = reference_logits(weights, config, ids)
    largest = np.abs(expected).max()
    assert np.median(np.abs(actual - expected)) <= np.median(np.abs(exact - expected)) + 1e-6
    assert np.abs(actual - expected).max() <= (1e-3 if recipe == "fp32" else 0.01) * largest


def test_norms_survive_activations_whose_squares_overflow_fp16(tmp_path):
    """Residual values of thousands, as large language models have: their squares are far beyond fp16's 65504."""
    config, weights = model("fp16")
    scaled = dict(weights)
    for part in ("embed_tokens", "layers.0.mlp.down_proj", "layers.0.self_attn.o_proj"):
        name = f"model.{part}.weight"
        scaled[name] = (weights[name].astype(np.float32) * 8000).astype(np.float16)
    write_coreml(tmp_path, config, scaled, CONTEXT, functions=FUNCTIONS)
    ids = token_ids()
    expected = reference_logits(scaled, config, ids)
    actual = interpreted_logits(Interpreter(tmp_path / PACKAGE, exact=False), ids)
    assert np.isfinite(actual).all()
    assert np.abs(expected).max() > 1000
    assert np.abs(actual - expected).max() <= 0.01 * np.abs(expected).max()


def test_norms_keep_their_epsilon_when_activations_are_tiny(tmp_path):
    config, weights = model("fp16")
    scaled = {**weights, "model.embed_tokens.weight": (weights["model.embed_tokens.weight"] * np.float16(0.01))}
    write_coreml(tmp_path, config, scaled, CONTEXT, functions=FUNCTIONS)
    ids = token_ids()
    expected = reference_logits(scaled, config, ids)
    actual = interpreted_logits(Interpreter(tmp_path / PACKAGE, exact=False), ids)
    assert np.abs(actual - expected).max() <= 0.02 * np.abs(expected).max()
    changed = reference_logits(scaled, replace(config, rms_norm_eps=1e-9), ids)
    assert np.abs(changed - expected).max() > 0.05 * np.abs(expected).max()  # so the epsilon did matter


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"window": 5}, "window"),
        ({"scale": 0.3}, "scale"),
        ({"softcap": 2.0}, "softcap"),
        ({"kv_heads": 4}, "kv_heads"),
    ],
)
def test_attention_features(tmp_path, change, what):
    config, weights = model("fp32")
    attention = replace(config.attention, **change)
    config = replace(config, attention=attention)
    rng = np.random.default_rng(0)
    if "kv_heads" in change:
        weights = dict(weights)
        for layer in range(2):
            for part in "kv":
                shape = attention.kv_width, config.hidden_size
                weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (
                    rng.normal(size=shape).astype(np.float32) * 0.1
                )
    write_coreml(tmp_path, config, weights, CONTEXT, functions=FUNCTIONS)
    ids = token_ids()
    assert np.abs(COREML.exact_logits(tmp_path, config, ids) - reference_logits(weights, config, ids)).max() <= 1e-4
    assert np.abs(COREML.emulate(weights, config, ids) - reference_logits(weights, config, ids)).max() <= 1e-2
    constants = COREML.read_back(tmp_path, config).constants
    assert constants[f"model.layers.1.self_attn:{what}"] == pytest.approx(change[what], rel=1e-6)


def test_epsilons_survive_fp16():
    for epsilon in (1e-5, 1e-6, 1e-8, 2e-5, 9.999999747378752e-06):
        for dtype in (np.float16, np.float32):
            found = apple.epsilon_of_root(apple.root_of_epsilon(epsilon, dtype))
            assert np.float32(found) == np.float32(epsilon)


def test_lint_names_what_keeps_a_package_off_the_neural_engine():
    fixed = lint(package("int8")[0] / PACKAGE)
    assert {STATE_SHAPE, STATE_SIZE} <= {finding.rule for finding in fixed}  # heads of 16 are no multiple of 32
    assert not {FLEXIBLE, BLOCKS, RANK, WIDTH} & {finding.rule for finding in fixed}
    assert fixed[0].rule.effect == "breaks"
    flexible = lint(package("int4", functions=FLEXIBLE_ONLY)[0] / PACKAGE)
    assert {FLEXIBLE, BLOCKS} <= {finding.rule for finding in flexible}
    assert all("http" in str(finding) or "coremltools" in str(finding) for finding in (*fixed, *flexible))


def test_inspect_reports_a_package():
    from pocketlm.runtimes.inspect import inspect

    found = inspect(str(package("int4")[0] / PACKAGE))
    assert found["kind"] == "coreml"
    assert found["functions"]["prefill"] == "inputIds, position, logitsIndex"
    assert found["operators"]["decode"]["linear"] == 15
    assert any("opt-quantization-perf" in line for line in found["lint"])


@pytest.mark.parametrize("recipe", ["int4-rtn", "fp32"])
def test_an_export_passes_its_certificate(tmp_path, tiny_folder, recipe):
    import json

    from pocketlm.runtimes.build import export
    from pocketlm.runtimes.verify import verify

    report = export(str(tiny_folder), tmp_path / "b", to=("coreml",), recipe=recipe, context=192)
    found = report.certificate.targets["coreml"]
    assert found.passed
    assert found.conversion.kl <= 1e-9
    assert 0 < found.activation.kl < 1e-4
    assert "Apple's own kernels and numerics were not run" in found.evaluated_by or sys.platform == "darwin"
    kept = json.loads((tmp_path / "b/pocketlm.json").read_text())["certificate"]["targets"]["coreml"]
    assert any("unsupported-layers" in line for line in kept["lint"])
    assert verify(tmp_path / "b").passed


def test_an_unknown_operation_is_named(tmp_path):
    config, weights = model("int8")
    write_coreml(tmp_path, config, weights, CONTEXT, functions=FUNCTIONS)

    def change(functions):
        norm = operation(functions["decode"], "model_norm")
        silu = next(op for op in functions["decode"] if op.type == "silu")
        silu.type = "relu"
        assert norm.type == "mul"

    edit(tmp_path, change)
    with pytest.raises(InputError, match="operation relu"):
        open_coreml(tmp_path).run([3])


def test_without_coremltools_the_extra_is_named():
    code = (
        "import sys; sys.modules['coremltools'] = None\n"
        "from pathlib import Path\n"
        "from pocketlm.runtimes.coreml_session import open_coreml\n"
        "open_coreml(Path('nowhere'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: coremltools is not installed; run: pip install 'pocketlm[coreml]'" in result.stderr
