"""A verify that cannot fail is worthless: every artifact here is damaged on purpose, and must be caught and named."""

import shutil

import numpy as np
import onnx
import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.build import export
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.verify import verify


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("mutations") / "bundle"
    export(str(tiny_folder), folder, recipe="int4-rtn", context=192)
    return folder


@pytest.fixture
def damaged(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "damaged")


def edit(folder, change):
    """Change the graph of a bundle's ONNX file in place."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def node(graph, name):
    return next(node for node in graph.node if node.name == name)


def bytes_of(folder, graph, name):
    """Where a tensor's bytes lie in model.onnx.data."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(folder / "onnx/model.onnx.data", np.uint8, "r+", int(place["offset"]), (int(place["length"]),))


def failures(folder):
    certificate = verify(folder, hashes=False).targets["onnx"]
    assert not certificate.passed
    return "; ".join(certificate.failures)


def test_the_untouched_bundle_passes(bundle):
    certificate = verify(bundle)
    assert certificate.passed
    assert certificate.targets["onnx"].total is not None


def test_one_flipped_bit_of_a_weight(damaged):
    graph = onnx.load(damaged / "onnx/model.onnx", load_external_data=False).graph
    codes = bytes_of(damaged, graph, "model.layers.1.mlp.gate_proj+up_proj.codes")
    codes[160 * 32 + 5] ^= 1  # the first row of up_proj begins behind gate_proj's 160 rows of 32 bytes
    codes.flush()
    assert failures(damaged) == "model.layers.1.mlp.up_proj.weight: codes differ from the canonical ones"
    with pytest.raises(InputError, match=r"model.onnx.data is missing or was changed .*up_proj.weight: codes differ"):
        verify(damaged)


def test_two_swapped_scales(damaged):
    graph = onnx.load(damaged / "onnx/model.onnx", load_external_data=False).graph
    scales = bytes_of(damaged, graph, "model.layers.0.self_attn.q_proj+k_proj+v_proj.scales").view(np.float32)
    scales[[0, 1]] = scales[[1, 0]]
    assert scales[0] != scales[1]
    scales.flush()
    assert failures(damaged) == "model.layers.0.self_attn.q_proj.weight: scales differ from the canonical ones"


def test_a_changed_norm_epsilon(damaged):
    def change(graph):
        norm = node(graph, "model.layers.1.input_layernorm")
        next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 1e-6

    edit(damaged, change)
    assert "model.layers.1.input_layernorm.weight:epsilon is 9.99999997e-07 in the file, 1e-05" in failures(damaged)


def test_a_changed_attention_scale(damaged):
    def change(graph):
        attention = node(graph, "model.layers.0.self_attn")
        next(attribute for attribute in attention.attribute if attribute.name == "scale").f = 0.25

    edit(damaged, change)
    assert "model.layers.0.self_attn:scale is 0.25 in the file" in failures(damaged)


def test_a_dropped_cache_update(damaged):
    """The attention's new keys go nowhere; the caller gets the old ones back."""

    def change(graph):
        attention = node(graph, "model.layers.1.self_attn")
        attention.output[1] = "nowhere"
        graph.node.append(onnx.helper.make_node("Identity", ["past_key_values.1.key"], ["present.1.key"]))

    edit(damaged, change)
    found = failures(damaged)
    assert "conversion: KL" in found
    assert "model.layers.1.self_attn deviates first" in found
    assert "its cache is wrong" in found


def test_swapped_caches_of_two_layers(damaged):
    def change(graph):
        first, second = (node(graph, f"model.layers.{layer}.self_attn") for layer in (0, 1))
        first.input[3], second.input[3] = second.input[3], first.input[3]

    edit(damaged, change)
    assert "its cache is wrong" in failures(damaged)


def test_a_skipped_residual(damaged):
    """Weights and constants are all there, but one addition takes the wrong input."""

    def change(graph):
        norm = node(graph, "model.layers.0.post_attention_layernorm")
        norm.input[0] = norm.input[1]

    edit(damaged, change)
    assert "model.layers.0.post_attention_layernorm deviates first" in failures(damaged)


def test_wrong_rotary_tables(damaged):
    graph = onnx.load(damaged / "onnx/model.onnx", load_external_data=False).graph
    sines = bytes_of(damaged, graph, "rotary.sines").view(np.float32)
    sines *= -1
    sines.flush()
    assert failures(damaged).startswith("model.layers.0.self_attn:rotary tables: not found in the file; ")


def test_a_prompt_whose_first_token_is_answered(damaged):
    """The weights, constants and every logit are right, but the graph hands out those of the wrong token."""

    def change(graph):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "first_index"))
        for gather in (node for node in graph.node if node.name.endswith(".last_token")):
            gather.input[1] = "first_index"

    edit(damaged, change)
    assert "model.layers.1.self_attn.o_proj.output gives 3 rows for" in failures(damaged)


def test_a_golden_file_of_another_model(damaged):
    path = damaged / "golden.json"
    text = path.read_text()
    start = text.index('"logits": [') + len('"logits": [')
    path.write_text(text[:start] + "-" + text[start:].lstrip("-"))
    with pytest.raises(InputError, match=r"golden.json is missing or was changed"):
        verify(damaged)
    assert "golden replay: KL" in failures(damaged)


def test_a_flipped_bit_anywhere_in_the_graph_is_no_crash(bundle, tmp_path):
    """It is refused, or caught, or it changes nothing that is computed."""
    generator = np.random.default_rng(7)
    whole = (bundle / "onnx" / "model.onnx").read_bytes()
    folder = shutil.copytree(bundle, tmp_path / "b")
    sound = OnnxSession(bundle / "onnx").run([5, 6, 7]).copy()
    places = [
        *generator.integers(0, len(whole), 16),
        *(whole.index(key) + 1 for key in (b"offset", b"location", b"bits")),
    ]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(generator.integers(0, 8))
        (folder / "onnx" / "model.onnx").write_bytes(content)
        try:
            passed = verify(folder, hashes=False).passed
        except InputError:
            continue
        if passed:
            assert np.array_equal(OnnxSession(folder / "onnx").run([5, 6, 7]), sound)
