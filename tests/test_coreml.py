"""The Core ML target: what is written, what is read back, what it computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coreml_models import CHUNK, CONTEXT, FUNCTIONS, RECIPES, blob, edit, model, operation, package, source, token_ids
from pocketlm.errors import InputError, ParityError
from pocketlm.export import apple
from pocketlm.export.bundle import fingerprint
from pocketlm.export.decoder import decoder
from pocketlm.export.recorder import Recorder
from pocketlm.export.to_coreml import write_coreml
from pocketlm.export.to_torch import TorchOps, reference_logits
from pocketlm.quantize.store import pack_int4
from pocketlm.quantize.tensor import QuantizedTensor
from pocketlm.runtimes.build import export
from pocketlm.runtimes.coreml_exact import interpreted_logits
from pocketlm.runtimes.coreml_lint import BLOCKS, FLEXIBLE, RANK, STATE_SHAPE, STATE_SIZE, WIDTH, lint
from pocketlm.runtimes.coreml_session import PACKAGE, open_coreml
from pocketlm.runtimes.coreml_target import COREML
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.mil_interpreter import Interpreter
from pocketlm.runtimes.mil_package import MilPackage
from safetensors.numpy import load_file, save_file
from tiny import tiny_llama

FLEXIBLE_ONLY = (apple.FLEXIBLE,)
ALL = (*FUNCTIONS, apple.FLEXIBLE)


def transformers_logits(folder, ids, weights):
    """What transformers computes with the canonical weights."""
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


def on_disk(size):
    """A blob in weight.bin: a header of 64 bytes, and its content filled up to a multiple of 64."""
    return 64 + -(-size // 64) * 64


@pytest.mark.parametrize("recipe", ["int4", "int8", "fp16"])
def test_every_byte_of_the_weights_file_is_accounted_for(recipe):
    """Codes, scales and norms, each once for all functions, the tied table too; and what little there is besides."""
    folder, _, weights = package(recipe)
    arrays = []
    for weight in weights.values():
        if isinstance(weight, QuantizedTensor):
            arrays += [weight.codes.size * weight.bits // 8, 2 * weight.scales.size]
        else:
            arrays.append(weight.nbytes)
    rotary = [CONTEXT * 8 * 4] * 2  # cosines and sines, float32 (slots, head_dim / 2)
    no_bias = [2 * rows for rows in {weight.shape[0] for weight in weights.values() if len(weight.shape) == 2}]
    positions = [4 * CONTEXT, 4 * CHUNK]  # the numbers of all slots; those of a chunk's rows
    expected = 64 + sum(map(on_disk, [*arrays, *rotary, *no_bias, *positions]))
    assert MilPackage(folder / PACKAGE).weights_path.stat().st_size == expected


def test_description_follows_swift_transformers():
    folder, _, _ = package("int4", functions=FLEXIBLE_ONLY)
    description = MilPackage(folder / PACKAGE).spec.description
    assert [feature.name for feature in description.input] == ["inputIds", "causalMask"]
    assert [feature.name for feature in description.output] == ["logits"]
    assert [feature.name for feature in description.state] == ["keyCache", "valueCache"]
    ranges = description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert [(r.lowerBound, r.upperBound) for r in ranges] == [(1, 1), (1, CONTEXT)]
    # A mask is one wider than the conversation, which may be as long as the context.
    assert list(description.state[0].type.stateType.arrayType.shape) == [2, 2, 128, 16]
    assert description.input[1].type.multiArrayType.shapeRange.sizeRanges[3].upperBound >= CONTEXT + 1


def test_called_as_swift_transformers_calls_it():
    """LanguageModelWithStatefulKVCache: all tokens first, then the last one; masks one wider than the text."""
    folder, config, weights = package("int4", functions=FLEXIBLE_ONLY)
    ids = token_ids(CONTEXT).astype(np.int32)
    expected = reference_logits(weights, config, ids.astype(np.int64))[0]
    interpreter = Interpreter(folder / PACKAGE, exact=True)
    state = interpreter.new_state()
    prompt = CONTEXT - 8
    for count in range(prompt, CONTEXT + 1):
        tokens = ids[:, :prompt] if count == prompt else ids[:, count - 1 : count]
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


def test_softmax_survives_products_that_overflow_fp16(tmp_path):
    """Queries and keys as large as Qwen2's: q.k is beyond fp16's 65504 before it is scaled."""
    config, weights = model("fp16")
    scaled = {
        name: (weight * np.float16(60 if "q_proj" in name or "k_proj" in name else 1))
        for name, weight in weights.items()
    }
    largest = []

    def listen(name, value):
        if name.endswith("q_proj+k_proj+v_proj.output"):
            query, key, _ = value[0].split([64, 32, 32], -1)  # (tokens, width)
            rows, columns = (
                query.reshape(-1, 2, 2, 16).permute(1, 2, 0, 3),
                key.reshape(-1, 2, 1, 16).permute(1, 2, 3, 0),
            )
            largest.append((rows @ columns).abs().max().item())

    ids = token_ids()
    decoder(Recorder(TorchOps(scaled, config, ids.shape[1]), listen), config, torch.from_numpy(ids))
    assert min(largest) > 65504
    write_coreml(tmp_path, config, scaled, CONTEXT, functions=FUNCTIONS)
    actual = interpreted_logits(Interpreter(tmp_path / PACKAGE, exact=False), ids)
    assert np.isfinite(actual).all()
    expected = reference_logits(scaled, config, ids)
    assert np.abs(actual - expected).max() <= 0.01 * np.abs(expected).max()


def test_norms_keep_their_epsilon_when_activations_are_tiny(tmp_path):
    config, weights = model("fp16")
    scaled = {**weights, "model.embed_tokens.weight": (weights["model.embed_tokens.weight"] * np.float16(0.01))}
    write_coreml(tmp_path, config, scaled, CONTEXT, functions=FUNCTIONS)
    ids = token_ids()
    expected = reference_logits(scaled, config, ids)
    actual = interpreted_logits(Interpreter(tmp_path / PACKAGE, exact=False), ids)
    assert np.abs(actual - expected).max() <= 0.02 * np.abs(expected).max()
    changed = reference_logits(scaled, replace(config, norms=replace(config.norms, epsilon=1e-9)), ids)
    assert np.abs(changed - expected).max() > 0.05 * np.abs(expected).max()  # so the epsilon did matter


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"window": 5}, "window"),
        ({"scale": 0.3}, "scale"),
        ({"softcap": 2.3}, "softcap"),
        ({"kv_heads": 4}, "kv_heads"),
    ],
)
@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_attention_features(tmp_path, change, what, recipe):
    """In fp16 too the numbers are those of the configuration, to the last bit of a float32."""
    config, weights = model(recipe)
    kind = np.dtype(recipe.replace("fp", "float"))
    attention = replace(config.layers[0].attention, **change)
    config = replace(config, layers=tuple(replace(layer, attention=attention) for layer in config.layers))
    rng = np.random.default_rng(0)
    if "kv_heads" in change:
        weights = dict(weights)
        for layer in range(2):
            for part in "kv":
                shape = attention.kv_width, config.hidden_size
                weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (rng.normal(size=shape) * 0.1).astype(
                    kind
                )
    write_coreml(tmp_path, config, weights, CONTEXT, functions=FUNCTIONS)
    ids = token_ids()
    assert np.abs(COREML.exact_logits(tmp_path, config, ids) - reference_logits(weights, config, ids)).max() <= 1e-4
    tolerance = 1e-2 if recipe == "fp32" else 0.05
    assert np.abs(COREML.emulate(weights, config, ids) - reference_logits(weights, config, ids)).max() <= tolerance
    constants = COREML.read_back(tmp_path, config).constants
    assert np.float32(constants[f"model.layers.1.self_attn:{what}"]) == np.float32(change[what])


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


def test_a_model_that_overflows_fp16_is_not_exported(tmp_path):
    """Infinite on both sides is no agreement."""
    folder = tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= 3e5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ParityError, match="no finite number: something overflows"):
        export(str(folder), tmp_path / "b", to=["coreml"], recipe="int4-rtn", context=64)


def test_formats_may_be_mixed_where_there_are_biases(tmp_path):
    folder = tiny_llama(tmp_path / "model", attention_bias=True, mlp_bias=True)
    recipe = tmp_path / "mixed.toml"
    recipe.write_text('base = "fp32"\n[overrides]\n"model.layers.0.self_attn.v_proj.weight" = { kind = "fp16" }\n')
    assert export(str(folder), tmp_path / "b", to=["coreml"], recipe=str(recipe), context=64).certificate.passed
