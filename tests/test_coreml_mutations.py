"""Packages that are damaged on purpose: every one must be caught, and the damage named."""

import shutil

import numpy as np
import pytest
from coreml_models import blob, edit, operation, package, spec_path, token_ids
from pocketlm.errors import InputError
from pocketlm.export import apple
from pocketlm.export.bundle import fingerprint
from pocketlm.export.to_torch import reference_logits
from pocketlm.runtimes.coreml_target import COREML
from pocketlm.runtimes.identity import check_identity


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "coreml"
    shutil.copytree(package("int4")[0], folder)
    return folder


def differences(folder):
    """What identity says."""
    _, config, weights = package("int4")
    prints = {name: fingerprint(weight) for name, weight in weights.items()}
    return check_identity(COREML.read_back(folder, config), prints, config).differences


def conversion_error(folder):
    _, config, weights = package("int4")
    ids = token_ids()
    return np.abs(COREML.exact_logits(folder, config, ids) - reference_logits(weights, config, ids)).max()


def located(folder):
    _, config, weights = package("int4")
    return COREML.locate(folder, config, weights, token_ids())


def test_the_untouched_package_passes(damaged):
    assert differences(damaged) == ()
    assert conversion_error(damaged) <= 1e-4
    assert "no single operation" in located(damaged)


@pytest.mark.parametrize("function", ["decode", "prefill"])
def test_a_dropped_state_write(damaged, function):
    def change(functions):
        operations = functions[function]
        index = next(
            i for i, op in enumerate(operations)
            if op.type == "write_state" and op.inputs["data"].arguments[0].name == "layers_1_keyCache_rows"
        )  # fmt: skip
        del operations[index]

    edit(damaged, change)
    with pytest.raises(InputError, match=f"in {function}, layer 1's keyCache is not written back to the state"):
        differences(damaged)
    assert conversion_error(damaged) > 1e-2
    assert located(damaged).startswith("model.layers.1.self_attn deviates first")


def test_a_transposed_weight(damaged):
    name = "model.layers.0.self_attn.q_proj.weight"  # 64 by 64
    packed = blob(damaged, apple.identifier(name), "data")
    nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(64, 64).T.reshape(-1)
    packed[:] = nibbles[0::2] | nibbles[1::2] << 4
    packed.flush()
    assert differences(damaged) == (f"{name}: codes differ from the canonical ones",)
    assert conversion_error(damaged) > 1e-2
    assert located(damaged).startswith("model.layers.0.self_attn.q_proj+k_proj+v_proj.output deviates first")


def swap_layers(functions, function, parts):
    """Let layers 0 and 1 use each other's rows of the value cache."""
    for part in parts:
        first, second = (operation(functions[function], f"layers_{layer}_valueCache_{part}") for layer in (0, 1))
        for key in ("begin", "end"):
            keep = first.inputs[key].arguments[0].name
            first.inputs[key].arguments[0].name = second.inputs[key].arguments[0].name
            second.inputs[key].arguments[0].name = keep


@pytest.mark.parametrize("parts", [("read",), ("rows", "read")])
def test_two_layers_swap_their_states_in_one_function(damaged, parts):
    def change(functions):
        operations = functions["decode"]
        moved = [op for op in operations if op.type in ("const", "concat")]  # constants are declared before their use
        swap_layers(functions, "decode", parts)
        others = [op for op in operations if op.type not in ("const", "concat")]
        ordered = [type(op).FromString(op.SerializeToString()) for op in order(moved + others)]
        del operations[:]
        operations.extend(ordered)

    edit(damaged, change)
    with pytest.raises(InputError, match="in decode, layer 0's valueCache is another layer's"):
        differences(damaged)
    assert conversion_error(damaged) > 1e-2
    assert "model.layers.0.self_attn deviates first" in located(damaged)
    assert located(damaged).endswith("only behind cached tokens, so its cache is wrong")


def order(operations):
    """Operations so that each stands behind what it takes; otherwise as they were."""
    left, known, done = list(operations), set(), []
    made = {output.name for op in left for output in op.outputs}
    while left:
        for op in left:
            taken = {part.name for argument in op.inputs.values() for part in argument.arguments if part.name}
            if taken & made <= known:
                break
        left.remove(op)
        known |= {output.name for output in op.outputs}
        done.append(op)
    return done


def test_one_flipped_bit_of_a_weight(damaged):
    packed = blob(damaged, "model_layers_1_mlp_up_proj_weight", "data")
    packed[77] ^= 0x10
    packed.flush()
    assert differences(damaged) == ("model.layers.1.mlp.up_proj.weight: codes differ from the canonical ones",)


def test_two_swapped_scales(damaged):
    scales = blob(damaged, "model_layers_0_mlp_down_proj_weight", "scale").view(np.float16)
    assert scales[0] != scales[1]
    scales[[0, 1]] = scales[[1, 0]]
    scales.flush()
    assert differences(damaged) == ("model.layers.0.mlp.down_proj.weight: scales differ from the canonical ones",)


def change_root(operations):
    root = operation(operations, "model_layers_1_input_layernorm_weight_root_epsilon")
    root.attributes["val"].immediateValue.tensor.bytes.values = np.float16(1e-3).tobytes()


def test_a_changed_epsilon(damaged):
    edit(damaged, lambda functions: [change_root(operations) for operations in functions.values()])
    expected = "model.layers.1.input_layernorm.weight:epsilon is 1e-06 in the file, 1e-05 in the model"
    assert [line.replace("9.99999997e-07", "1e-06") for line in differences(damaged)] == [expected]


def test_an_epsilon_changed_in_one_function(damaged):
    edit(damaged, lambda functions: change_root(functions["prefill"]))
    with pytest.raises(InputError, match=r"model.layers.1.input_layernorm.weight:epsilon is 1e-06 in prefill"):
        differences(damaged)


def test_a_layer_that_uses_another_layers_weight(damaged):
    def change(functions):
        linear = operation(functions["decode"], "model_layers_1_mlp_gate_proj_output")
        linear.inputs["weight"].arguments[0].name = "model_layers_0_mlp_gate_proj_weight"

    edit(damaged, change)
    with pytest.raises(InputError, match=r"in decode, model.layers.0.mlp.gate_proj.weight"):
        differences(damaged)


def test_keys_and_values_exchanged(damaged):
    def change(functions):
        products = [op for op in functions["prefill"] if op.type == "matmul"]
        key, value = (op.inputs["y"].arguments[0] for op in products[:2])
        key.name, value.name = value.name, key.name

    edit(damaged, change)
    with pytest.raises(InputError, match="in prefill, layer 0's keyCache is not what the layer's attention takes"):
        differences(damaged)


def test_a_changed_rotary_table(damaged):
    path = damaged / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(path.read_bytes())
    _, config, _ = package("int4")
    from pocketlm.export.rope import rotary_tables

    table = rotary_tables(config.layers[0].attention.rope, 16, 96)[0].tobytes()
    data[data.index(table) + 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="rotary_cosines is not what the configuration asks for"):
        differences(damaged)


def test_damaged_files_are_refused_in_one_line(damaged):
    weights = damaged / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    whole, spec = weights.read_bytes(), spec_path(damaged).read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read") as error:
        differences(damaged)
    assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        differences(damaged)
    spec_path(damaged).write_bytes(spec[: len(spec) // 2])
    with pytest.raises(InputError, match="not a readable package"):
        differences(damaged)
    shutil.rmtree(damaged / "model.mlpackage")
    with pytest.raises(InputError, match=r"is missing; export the model again with --to coreml"):
        differences(damaged)


def test_a_package_without_a_manifest_or_with_one_that_leads_out_of_it(damaged):
    manifest = damaged / "model.mlpackage/Manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace("com.apple.CoreML/model.mlmodel", "../../../secret"))
    with pytest.raises(InputError, match=r"its manifest names ../../../secret, outside the package"):
        differences(damaged)
    manifest.unlink()
    with pytest.raises(InputError, match=r"not a readable package \(FileNotFoundError"):
        differences(damaged)
    assert not manifest.exists()


def test_a_constant_in_another_file(damaged):
    """coremltools would read weight.bin all the same, and Core ML what is named."""

    def change(functions):
        weight = operation(functions["decode"], "model_layers_0_mlp_up_proj_weight")
        weight.inputs["data"].arguments[0].value.blobFileValue.fileName = "@model_path/../elsewhere/weight.bin"

    edit(damaged, change)
    with pytest.raises(InputError, match=r"a constant lies in @model_path/../elsewhere/weight.bin"):
        differences(damaged)


def test_a_value_of_hostile_size(damaged):
    """An operation that nobody needs, and whose result would fill the memory."""

    def change(functions):
        operations = functions["prefill"]
        place = next(i for i, op in enumerate(operations) if op.type == "tile")
        tile = type(operations[place]).FromString(operations[place].SerializeToString())
        reps = tile.inputs["reps"].arguments[0].name
        operation(operations, reps).attributes["val"].immediateValue.tensor.ints.values[2] = 1 << 26
        tile.outputs[0].name = "bomb"
        tile.outputs[0].type.tensorType.dimensions[2].constant.size = 16 << 26
        operations[place].inputs["reps"].arguments[0].name = reps + "_before"
        before = type(tile).FromString(operation(operations, reps).SerializeToString())
        before.outputs[0].name = reps + "_before"
        before.attributes["val"].immediateValue.tensor.ints.values[2] = 2
        operations.insert(place, tile)
        operations.insert(place, before)

    edit(damaged, change)
    with pytest.raises(InputError, match=r"makes more numbers than any model of a phone"):
        conversion_error(damaged)
