"""The ONNX target: the same weights, the same computation, in the file that ships."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pocketlm.errors import InputError
from pocketlm.export.bundle import fingerprint
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_onnx import OnnxOps, block_of, packed_codes, write_onnx
from pocketlm.export.to_torch import reference_logits
from pocketlm.quantize.recipe import load_recipe, parse_recipe
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.metrics import deviation
from pocketlm.runtimes.onnx_arithmetic import int8_per_block
from pocketlm.runtimes.onnx_exact import exact_logits
from pocketlm.runtimes.onnx_reader import read_back
from pocketlm.runtimes.onnx_session import OnnxSession
from test_decoder import random_tokens, transformers_logits
from tiny import tiny_llama

MIXED = parse_recipe(
    {"base": "int4", "overrides": {"*.k_proj.weight": {"kind": "int8"}, "*.1.mlp.gate_proj.weight": {"kind": "fp16"}}},
    "mixed",
)
MODELS = {
    "tied": {"tied": True},
    "biases, untied": {"attention_bias": True, "mlp_bias": True, "intermediate": 192},
}


def lower(folder, out, recipe, context=64):
    """Canonical weights and configuration of an ONNX artifact written to ``out``."""
    checkpoint = open_checkpoint(str(folder))
    config = parse_config(checkpoint.config)
    weights = dict(quantize_checkpoint(checkpoint, list(checkpoint.names()), recipe, lambda error: None))
    out.mkdir(exist_ok=True)
    write_onnx(out, config, weights, context)
    return weights, config


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", ["int4-rtn", "int4-g64-rtn", "int8", "fp16", "fp32", "mixed"])
def test_weights_are_identical_and_conversion_is_float_rounding(tmp_path, model, recipe):
    if recipe == "int4-g64-rtn":
        MODELS[model]["intermediate"] = 192
    folder = tiny_llama(tmp_path / "m", **MODELS[model])
    chosen = MIXED if recipe == "mixed" else load_recipe(recipe)
    weights, config = lower(folder, tmp_path / "onnx", chosen)
    found = read_back(tmp_path / "onnx", config)
    identity = check_identity(found, {name: fingerprint(tensor) for name, tensor in weights.items()}, config)
    assert identity.differences == ()
    assert identity.tensors_checked == 15 + (not config.tie_word_embeddings)
    tokens = random_tokens(2, 40)
    expected = reference_logits(weights, config, tokens)
    error = deviation(expected, exact_logits(tmp_path / "onnx", config, tokens))
    assert error.kl <= 1e-9
    assert error.max_abs_logit <= 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_fp32_equals_transformers_at_once_and_token_by_token(tmp_path, model):
    folder = tiny_llama(tmp_path / "m", **MODELS[model])
    lower(folder, tmp_path / "onnx", load_recipe("fp32"))
    tokens = random_tokens(1, 30)
    expected = transformers_logits(folder, tokens)[0]
    session = OnnxSession(tmp_path / "onnx")
    one_by_one = np.stack([session.run([token]).copy() for token in tokens[0].tolist()])
    assert np.abs(one_by_one - expected).max() <= 1e-4
    session.reset()
    assert np.abs(session.run(tokens[0].tolist()) - expected[-1]).max() <= 1e-4
    session.reset()
    session.run(tokens[0, :11].tolist())
    assert np.abs(session.run(tokens[0, 11:].tolist()) - expected[-1]).max() <= 1e-4


@pytest.mark.parametrize(
    ("bits", "group", "columns"), [(4, 32, 576), (4, 64, 192), (4, 128, 512), (8, None, 576), (8, None, 96)]
)
@pytest.mark.parametrize("rows", [1, 5])
def test_the_emulated_arithmetic_is_that_of_the_operator(bits, group, columns, rows):
    random = np.random.default_rng(bits * columns + rows)
    weight = round_to_nearest((random.standard_normal((48, columns)) * 0.05).astype(np.float32), bits, group)
    x = random.standard_t(3, (rows, columns)).astype(np.float32)
    block = block_of(weight)
    blocks = -(-columns // block)
    codes = packed_codes(weight, block).reshape(48, blocks, -1)
    scales = weight.scales if weight.scales.shape[1] == blocks else np.repeat(weight.scales, blocks, 1)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=columns, N=48, bits=bits, block_size=block, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    (found,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    emulated = int8_per_block(torch.from_numpy(x), weight).double() @ torch.from_numpy(weight.dequantize()).double().T
    exact = x.astype(np.float64) @ weight.dequantize().T.astype(np.float64)
    assert np.abs(found - emulated.numpy()).max() <= 2e-5
    assert np.abs(found - exact).max() > 1e-3, "the operator did not quantise its input: this test shows nothing"


def test_the_tied_table_is_stored_once(tmp_path):
    folder = tiny_llama(tmp_path / "m", tied=True, vocab=2048)
    lower(folder, tmp_path / "q", load_recipe("int8"))
    weights = sum(shape[0] * shape[1] for shape in ((2048, 64), *[(128, 64), (64, 64), (64, 64), (64, 128)] * 2))
    weights += 2 * 3 * 64 * 160
    size = (tmp_path / "q" / "model.onnx.data").stat().st_size
    assert weights <= size < weights + 2048 * 64


def test_a_session_guards_its_cache(tmp_path, tiny_folder):
    lower(tiny_folder, tmp_path / "o", load_recipe("int4-rtn"), context=16)
    session = OnnxSession(tmp_path / "o")
    assert (session.context, session.vocab_size, session.position) == (16, 512, 0)
    first = session.run(list(range(3, 19))).copy()
    with pytest.raises(InputError, match="17 tokens do not fit the context of 16"):
        session.run([3])
    session.reset()
    with pytest.raises(InputError, match="no tokens"):
        session.run([])
    with pytest.raises(InputError, match="outside the vocabulary"):
        session.run([512])
    with pytest.raises(InputError, match="outside the vocabulary"):
        session.run([-1])
    assert np.array_equal(session.run(list(range(3, 19))), first), "what a reset leaves in the cache must not matter"


def test_a_missing_or_broken_file_is_one_line(tmp_path, tiny_folder):
    with pytest.raises(InputError, match=r"model.onnx is missing"):
        OnnxSession(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x00rubbish")
    with pytest.raises(InputError, match="ONNX Runtime cannot load it"):
        OnnxSession(tmp_path)
    lower(tiny_folder, tmp_path / "o", load_recipe("int4-rtn"))
    data = tmp_path / "o" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(InputError):
        OnnxSession(tmp_path / "o")
    config = parse_config(open_checkpoint(str(tiny_folder)).config)
    with pytest.raises(InputError, match="too short"):
        [read_back(tmp_path / "o", config).weights[name] for name in read_back(tmp_path / "o", config).weights]


def test_a_hidden_size_that_no_block_divides_is_refused(tmp_path):
    folder = tiny_llama(tmp_path / "m", hidden=72, intermediate=160, tied=True)
    with pytest.raises(InputError, match="16 divides"):
        lower(folder, tmp_path / "o", load_recipe("int8"))


def test_the_graph_names_what_it_holds(tmp_path, tiny_folder):
    lower(tiny_folder, tmp_path / "o", load_recipe("int4-rtn"))
    model = onnx.load(tmp_path / "o" / "model.onnx", load_external_data=False)
    names = {node.name for node in model.graph.node}
    assert "model.layers.0.self_attn.q_proj+k_proj+v_proj.output" in names
    assert "model.layers.1.mlp.gate_proj+up_proj.output" in names
    assert OnnxOps.attention.__doc__ is not None
    assert json.loads(json.dumps({p.key: p.value for p in model.metadata_props})) == {"context": "64"}
