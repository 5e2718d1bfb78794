"""The int8 cache: the operator's arithmetic, its scales, its term in the certificate, and who cannot have it."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pocketlm.errors import InputError, ParityError
from pocketlm.export.bundle import fingerprint, read_manifest
from pocketlm.export.cache_scales import WithScales, measure_scales
from pocketlm.export.caches import target_cache
from pocketlm.export.to_onnx import write_onnx
from pocketlm.export.to_torch import reference_logits
from pocketlm.quantize.cache import INT8_CHANNEL, PARTS, cache_scales, scale_name, scales_for
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cache_arithmetic import int8_per_channel
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.onnx_exact import exact_logits
from pocketlm.runtimes.onnx_reader import read_back
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.verify import verify
from tiny import tiny_llama
from tiny_families import CONTEXT, canonical, token_ids

# A sliding window, norms of queries and keys, a soft cap, no rotation, one key for each query and one for several
FAMILIES = ("qwen3", "mistral", "gemma2", "gemma3", "smollm3", "gpt2", "gpt_neox", "phi4", "olmo2", "openelm")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    model = tiny_llama(folder / "m")
    export(str(model), folder / "b", recipe="int4-rtn", cache="int8", context=64)
    return folder / "b"


@pytest.fixture
def damaged(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "b")


def edit(folder, change):
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def attention_of(graph, layer):
    return next(node for node in graph.node if node.name == f"model.layers.{layer}.self_attn")


def failures(folder):
    return "; ".join(verify(folder, hashes=False).targets["onnx"].failures)


# ---- the operator -------------------------------------------------------------------------------------------------


def softmax(scores):
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def attend(q, k, v, scale, window, softcap):
    """Attention in float64 of q (heads, tokens, width) over k, v (kv_heads, tokens, width), written without torch."""
    heads, tokens, _ = q.shape
    out = np.empty_like(q)
    for head in range(heads):
        shared = head * len(k) // heads
        scores = q[head] @ k[shared].T * scale
        if softcap:
            scores = np.tanh(scores / softcap) * softcap
        for own in range(tokens):
            first = 0 if window is None else max(0, own - window + 1)
            out[head, own] = softmax(scores[own, first : own + 1]) @ v[shared][first : own + 1]
    return out


def one_attention(heads, kv_heads, width, window, softcap, rotary, scales):
    """A graph of one GroupQueryAttention with an int8 cache."""
    inputs = ["qkv", "", "", "past.key", "past.value", "last", "total"]
    inputs += ["cos", "sin"] if rotary else ["", ""]
    inputs += ["", "", "", "k_scale", "v_scale"]
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["y", "key", "value"], domain="com.microsoft", num_heads=heads,
        kv_num_heads=kv_heads, scale=0.3, do_rotary=int(bool(rotary)), local_window_size=window or -1,
        softcap=softcap or 0.0, k_quant_type="PER_CHANNEL", v_quant_type="PER_CHANNEL", kv_cache_bit_width=8,
    )  # fmt: skip
    cache = [1, kv_heads, "cache", width]

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    tensors = [
        numpy_helper.from_array(array.reshape(1, kv_heads, 1, width), name)
        for array, name in zip(scales, ("k_scale", "v_scale"), strict=True)
    ]
    if rotary:
        tensors += [numpy_helper.from_array(table, name) for table, name in zip(rotary, ("cos", "sin"), strict=True)]
    graph = helper.make_graph(
        [node], "one",
        [value("qkv", TensorProto.FLOAT, [1, "t", (heads + 2 * kv_heads) * width]),
         *(value(f"past.{part}", TensorProto.INT8, cache) for part in PARTS),
         value("last", TensorProto.INT32, [1]), value("total", TensorProto.INT32, [])],
        [value("y", TensorProto.FLOAT, None), *(value(part, TensorProto.INT8, cache) for part in PARTS)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def rotated(x, cosines, sines):
    first, second = np.split(x, 2, -1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], -1)


def stored(x, scales):
    """What a cache gives back of x (kv_heads, tokens, width), and its codes, in float32 as a kernel computes."""
    codes = np.clip(np.rint(x.astype(np.float32) * (np.float32(1) / scales[:, None])), -128, 127)
    return codes * scales[:, None].astype(np.float64), codes.astype(np.int8)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "window", "softcap", "rotates"),
    [
        (4, 2, 64, None, None, True),
        (4, 4, 128, None, None, True),
        (2, 1, 256, 6, None, True),
        (6, 2, 64, 5, 3.0, True),
        (2, 2, 16, None, 3.0, False),
        (3, 1, 64, None, None, False),
    ],
)
def test_the_operator_keeps_and_attends_as_written_down(heads, kv_heads, width, window, softcap, rotates):
    random = np.random.default_rng(width + heads)
    tokens, split = 21, 15
    qkv = random.standard_normal((heads + 2 * kv_heads, tokens, width)).astype(np.float32)
    qkv[heads] *= 4  # of keys, a column's own scale must hold
    angles = np.arange(64)[:, None] * 1000.0 ** (-np.arange(width // 2) / (width // 2))
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    q, k, v = np.split(qkv.astype(np.float64), [heads, heads + kv_heads])
    if rotates:
        q, k = (rotated(x, *(table[:tokens] for table in tables)) for x in (q, k))
    # the largest keys and values do not fit: they are cut off
    scales = [(np.abs(x).max(1) * random.uniform(0.7, 1.2, (kv_heads, width)) / 127).astype(np.float32) for x in (k, v)]
    kept = [stored(x, scale) for x, scale in zip((k, v), scales, strict=True)]
    expected = attend(q, kept[0][0], kept[1][0], 0.3, window, softcap).transpose(1, 0, 2).reshape(tokens, -1)

    session = one_attention(heads, kv_heads, width, window, softcap, tables if rotates else (), scales)
    rows = qkv.transpose(1, 0, 2).reshape(tokens, -1)
    past = [np.zeros((1, kv_heads, 0, width), np.int8)] * 2
    found = []
    for start, stop in ((0, split), *((token, token + 1) for token in range(split, tokens))):
        feeds = {
            "qkv": rows[None, start:stop], "past.key": past[0], "past.value": past[1],
            "last": np.array([stop - 1], np.int32), "total": np.array(stop, np.int32),
        }  # fmt: skip
        y, *past = session.run(None, feeds)
        found.append(y[0])
    assert np.abs(np.concatenate(found) - expected).max() <= 1e-3 * np.abs(expected).max()
    for codes, (_, wanted) in zip(past, kept, strict=True):
        moved = codes[0].astype(int) - wanted
        assert np.abs(moved).max() <= 1
        assert np.mean(moved != 0) <= 2e-3, "a half may fall to the other side after rotation, here and there"
    exact = attend(q, k, v, 0.3, window, softcap).transpose(1, 0, 2).reshape(tokens, -1)
    assert np.abs(np.concatenate(found) - exact).max() > 1e-2 * np.abs(expected).max(), "the cache was not rounded"


def test_the_emulation_rounds_as_the_operator_does():
    random = np.random.default_rng(5)
    x = random.standard_t(3, (1, 2, 40, 16)).astype(np.float32)
    scales = scales_for(np.abs(x).max((0, 2)).reshape(-1) * np.float32(0.8))
    keep = int8_per_channel({scale_name(0, part): scales for part in PARTS})
    expected, codes = stored(x[0], scales.reshape(2, 16))
    assert codes.min() == -128 or codes.max() == 127
    assert np.array_equal(keep(torch.from_numpy(x), 0, "value").numpy()[0], expected.astype(np.float32))


# ---- whole models -------------------------------------------------------------------------------------------------


def with_scales(name, recipe):
    config, weights = canonical(name, recipe)
    tokens = np.random.default_rng(1).integers(3, 320, (4, 24))
    return config, WithScales(measure_scales(weights, config, tokens, lambda: None), weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_as_emulated_in_prefill_and_decode(name, tmp_path):
    config, weights = with_scales(name, "fp32")
    write_onnx(tmp_path, config, weights, CONTEXT, INT8_CHANNEL)
    prints = {key: fingerprint(weights[key]) for key in weights}
    assert check_identity(read_back(tmp_path, config), prints, config, INT8_CHANNEL).differences == ()
    ids = token_ids(40)
    tokens = np.array([ids])
    float_cache = reference_logits(weights, config, tokens)[0]
    emulated = reference_logits(weights, config, tokens, cache=int8_per_channel(weights))[0]
    session = OnnxSession(tmp_path, 1)
    shipped = np.stack([session.run(ids[:20]).copy(), *(session.run([token]).copy() for token in ids[20:])])
    runtime, cost = (
        np.median(np.abs(shipped - other[19:]).max(-1) / np.abs(other).max()) for other in (emulated, float_cache)
    )
    assert cost > 1e-3, "the cache was not rounded: this test shows nothing"
    assert runtime <= cost / 4  # a half that falls to the other side moves a column by one step
    exact = exact_logits(tmp_path, config, tokens)[0]
    assert np.abs(exact - float_cache).max() <= 1e-4


def test_scales_hold_at_positions_that_were_not_measured():
    """Of a rotated pair either column gets as large as both together, sooner or later."""
    config, weights = with_scales("qwen3", "fp32")
    largest = {}

    def hear(x, layer, part):
        found = x.abs().amax((0, 2)).flatten().numpy()
        if part != "query":
            largest[layer, part] = np.maximum(largest.get((layer, part), 0), found)
        return x

    measured = np.random.default_rng(1).integers(3, 320, (4, 24))
    reference_logits(weights, config, measured, cache=hear)
    short = dict(largest)
    for (layer, part), found in short.items():
        assert (cache_scales(weights, layer, part) * 127 >= found).all()
    repeated = np.tile(measured[:1], (1, 5))[:, :CONTEXT]  # the same words further on
    reference_logits(weights, config, repeated, cache=hear)
    assert np.mean(largest[0, "key"] > short[0, "key"]) > 0.2, "nothing is larger further on: this test shows nothing"
    assert (largest[0, "key"] <= 127 * cache_scales(weights, 0, "key")).all()


# ---- the bundle and its certificate -------------------------------------------------------------------------------


def test_the_certificate_tells_the_cache_apart(bundle):
    manifest = read_manifest(bundle)
    assert manifest.caches == {"onnx": "int8-channel"}
    assert manifest.cache("onnx") == INT8_CHANNEL
    assert {scale_name(layer, part) for layer in (0, 1) for part in PARTS} <= set(manifest.weights)
    certificate = verify(bundle).targets["onnx"]
    assert certificate.passed
    assert certificate.cache.kl > 1e-6
    assert certificate.cache.max_abs_logit > 0
    assert certificate.conversion.kl <= 1e-9
    assert certificate.runtime.kl <= 2 * certificate.runtime.noise_floor_kl
    golden = json.loads((bundle / "golden.json").read_text())["targets"]
    assert golden["onnx-fp32"]["tolerance_kl"] > 1e-6  # keys and values are rounded there as well


def test_a_float_cache_has_no_such_term(tmp_path, tiny_folder):
    export(str(tiny_folder), tmp_path / "b", recipe="int4-rtn", context=64)
    content = json.loads((tmp_path / "b" / "pocketlm.json").read_text())
    assert content["caches"] == {"onnx": "fp32"}
    assert "cache" not in content["certificate"]["targets"]["onnx"]
    del content["caches"]  # as bundles were made before
    (tmp_path / "b" / "pocketlm.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path / "b").cache("onnx") is None
    assert verify(tmp_path / "b").passed


def test_a_changed_scale_is_named(damaged):
    def change(graph):
        tensor = next(tensor for tensor in graph.initializer if tensor.name == scale_name(1, "key"))
        values = numpy_helper.to_array(tensor).copy()
        values[0, 1, 0, 3] = np.nextafter(values[0, 1, 0, 3], np.float32(9))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    edit(damaged, change)
    assert failures(damaged) == f"{scale_name(1, 'key')}: values differ from the canonical ones"


@pytest.mark.parametrize("other", [(1, 12), (0, 13)])
def test_swapped_scales_are_named(damaged, other):
    """Those of two layers, and those of keys and values."""

    def change(graph):
        layer, place = other
        first, second = attention_of(graph, 0), attention_of(graph, layer)
        first.input[12], second.input[place] = second.input[place], first.input[12]

    edit(damaged, change)
    assert f"{scale_name(0, 'key')}: values differ" in failures(damaged)


def test_a_cache_of_another_kind_is_named(damaged):
    def change(graph):
        attention = attention_of(graph, 1)
        next(attribute for attribute in attention.attribute if attribute.name == "k_quant_type").s = b"PER_TENSOR"

    edit(damaged, change)
    assert "model.layers.1.self_attn: its cache is 8 bits PER_TENSOR and PER_CHANNEL" in failures(damaged)


def test_a_float_file_under_an_int8_manifest_is_named(damaged, tmp_path):
    export(str(tiny_llama(tmp_path / "m")), tmp_path / "float", recipe="int4-rtn", context=64)
    shutil.rmtree(damaged / "onnx")
    shutil.copytree(tmp_path / "float" / "onnx", damaged / "onnx")
    found = failures(damaged)
    assert f"{scale_name(0, 'key')}: not in the file" in found
    assert "its cache is fp32 in the file, int8-channel in the manifest" in found


def test_swapped_caches_of_two_layers_are_named(damaged):
    def change(graph):
        first, second = attention_of(graph, 0), attention_of(graph, 1)
        first.input[3], second.input[3] = second.input[3], first.input[3]

    edit(damaged, change)
    assert "its cache is wrong" in failures(damaged)


def test_a_limit_of_a_recipe_gates_the_cache(tmp_path, tiny_folder):
    recipe = tmp_path / "strict.toml"
    recipe.write_text('base = "int4-rtn"\n[thresholds]\n"cache.kl" = 1e-9\n')
    with pytest.raises(ParityError, match="cache: KL"):
        export(str(tiny_folder), tmp_path / "b", recipe=str(recipe), cache="int8", context=64)
    assert not (tmp_path / "b").exists()


def test_identity_alone_works_within_a_memory_limit(tmp_path, tiny_folder):
    report = export(
        str(tiny_folder), tmp_path / "b", recipe="int4-rtn", cache="int8", certify="identity", max_memory=4 << 30
    )
    certificate = report.certificate.targets["onnx"]
    assert "cache" in certificate.left_out
    assert "measure the cache" in report.memory.phases
    assert verify(tmp_path / "b").targets["onnx"].cache.kl > 1e-6


@pytest.mark.parametrize(("target", "reason"), [("coreml", "a state of Core ML can only be fp16")])
def test_a_target_without_it_refuses_in_one_line(target, reason, tmp_path, tiny_folder):
    with pytest.raises(InputError, match=reason):
        export(str(tiny_folder), tmp_path / "b", to=("onnx", target), cache="int8")
    assert not (tmp_path / "b").exists()


def test_an_unknown_cache_is_refused(tmp_path, tiny_folder):
    with pytest.raises(InputError, match="cache must be one of float, int8"):
        export(str(tiny_folder), tmp_path / "b", cache="int3")
    assert target_cache("onnx", "float").name == "fp32"


def test_a_damaged_name_of_a_cache_in_the_manifest(damaged):
    path = damaged / "pocketlm.json"
    path.write_text(path.read_text().replace('"int8-channel"', '"int7"'))
    with pytest.raises(InputError, match="the cache of onnx is 'int7'"):
        read_manifest(damaged)
