"""ExecuTorch's int8 cache: what is written runs as emulated, is read back, and is found when it is broken."""

from dataclasses import replace

import numpy as np
import pytest
from executorch_models import CONTEXT, model, source, token_ids
from pocketlm.errors import InputError
from pocketlm.export import to_executorch
from pocketlm.export.bundle import read_manifest
from pocketlm.export.executorch_graph import Cache, Kernel
from pocketlm.export.to_executorch import write_executorch
from pocketlm.runtimes.pte_check import check_program
from pocketlm.runtimes.pte_reader import read_back
from pocketlm.runtimes.pte_report import inspect_pte

pytest.importorskip("executorch")
torch = pytest.importorskip("torch")


def run(folder, ids):
    """All logits, in three calls, so that the cache takes part."""
    from pocketlm.runtimes.executorch_session import ExecuTorchSession

    session = ExecuTorchSession(folder)
    parts = ids[:5], ids[5:-1], ids[-1:]
    return np.concatenate([session.run_all(part) for part in parts])


def windowed(config, window):
    return replace(
        config,
        layers=tuple(replace(layer, attention=replace(layer.attention, window=window)) for layer in config.layers),
    )


@pytest.mark.parametrize("window", [None, 4])
def test_runs_what_the_emulation_computes(tmp_path, window):
    from pocketlm.export.to_torch import reference_logits
    from pocketlm.runtimes.executorch_arithmetic import int8_per_head

    config, weights = model("fp32")
    config, ids = windowed(config, window), token_ids(14)
    write_executorch(tmp_path, config, weights, CONTEXT, every_token=True, int8_cache=True)
    actual = run(tmp_path, ids)
    expected = reference_logits(weights, config, np.array([ids]), cache=lambda x, layer, part: int8_per_head(x))[0]
    exact = reference_logits(weights, config, np.array([ids]))[0]
    difference = np.abs(actual - expected).max(-1) / np.abs(expected).max()
    assert np.median(difference) <= 1e-5
    assert np.abs(actual - exact).max() > 100 * np.median(difference) * np.abs(exact).max()


def test_the_emulation_rounds_as_the_operations_of_torch_do():
    """Their scales and zero points are ExecuTorch's formula too, in Python; ranges that are too small apart."""
    import torch.ao.quantization.fx._decomposed
    from pocketlm.runtimes.executorch_arithmetic import int8_per_head

    x = torch.randn(7, 5, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 7)[:, None, None]
    x[0, 0], x[1, 1], x[2, 2] = 0, x[1, 1].abs(), -x[2, 2].abs()
    found = int8_per_head(x)
    ops = torch.ops.quantized_decomposed
    scales, zeros = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = ops.quantize_per_token(x, scales, zeros, -128, 127, torch.int8)
    expected = (codes.float() - zeros) * scales.float()
    apart = (found - expected).abs() / scales
    assert apart.max() <= 1.01  # torch rounds through the zero point in another order: a code at most
    assert (apart > 0.01).float().mean() < 0.01
    assert not int8_per_head(torch.zeros(2, 8)).any()
    tiny = torch.linspace(-1e-3, 1e-3, 8)
    assert (int8_per_head(tiny) - tiny).abs().max() <= 6.1e-5 / 2 * 1.01  # the smallest scale the kernel has


def test_every_operation_and_a_whole_layer_are_exact():
    from pocketlm.runtimes.executorch_exactness import EXACT, one_layer_exactness

    found = one_layer_exactness(*model("int4"), layers=[1], int8_cache=True)
    assert {"model.layers.1", "model.layers.1.self_attn", "model.layers.1.self_attn over int8"} <= set(found)
    assert max(found.values()) <= EXACT, found


def test_the_cache_takes_a_quarter_and_is_read_back(tmp_path):
    config, weights = model("int4")
    memory = {}
    for int8 in (False, True):
        write_executorch(tmp_path, config, weights, CONTEXT, int8_cache=int8)
        memory[int8] = inspect_pte(tmp_path / "model.pte").memory["caches"]
        assert check_program(tmp_path / "model.pte") == CONTEXT
        assert read_back(tmp_path, config).caches == ("int8-head" if int8 else "fp32",) * 2
    attention = config.layers[0].attention
    assert memory[True] == 2 * 2 * CONTEXT * attention.kv_heads * (attention.head_dim + 1 + 4)
    assert memory[False] == 2 * 2 * CONTEXT * attention.kv_heads * attention.head_dim * 4


def test_soft_capped_attention_is_refused(tmp_path):
    config, weights = model("int4")
    layers = tuple(replace(layer, attention=replace(layer.attention, softcap=30.0)) for layer in config.layers)
    with pytest.raises(InputError, match="no int8 cache for attention with soft-capped scores"):
        write_executorch(tmp_path, replace(config, layers=layers), weights, CONTEXT, int8_cache=True)
    assert not list(tmp_path.iterdir())


def broken(folder, change, monkeypatch):
    """Write the model with operations changed by ``change`` (nodes -> nodes) and read it back."""
    config, weights = model("int4")
    divide = to_executorch.divide
    monkeypatch.setattr(to_executorch, "divide", lambda nodes, results: divide(change(list(nodes)), results))
    write_executorch(folder, config, weights, CONTEXT, int8_cache=True)
    return read_back(folder, config)


def places(nodes, name):
    return [index for index, node in enumerate(nodes) if isinstance(node, Kernel) and node.op.startswith(name)]


@pytest.mark.parametrize("which", range(6, 12))
def test_a_dropped_write_of_codes_zero_points_or_scales(tmp_path, monkeypatch, which):
    def drop(nodes):
        del nodes[places(nodes, "llama::update_cache")[which]]
        return nodes

    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: cache: the model has llama::update_cache here"):
        broken(tmp_path, drop, monkeypatch)


@pytest.mark.parametrize("argument", range(10, 14))
def test_parameters_of_another_layer(tmp_path, monkeypatch, argument):
    def confuse(nodes):
        first, second = places(nodes, "llama::custom_quantized_sdpa")
        arguments = list(nodes[second].arguments)
        arguments[argument] = nodes[first].arguments[argument]
        assert isinstance(arguments[argument], Cache)
        nodes[second] = replace(nodes[second], arguments=tuple(arguments))
        return nodes

    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: it reads its int8 cache by scales or zero"):
        broken(tmp_path, confuse, monkeypatch)


def test_codes_in_another_range(tmp_path, monkeypatch):
    def narrow(nodes):
        index = places(nodes, "quantized_decomposed::quantize_per_token")[4]
        arguments = list(nodes[index].arguments)
        arguments[3] = 0
        nodes[index] = replace(nodes[index], arguments=tuple(arguments))
        return nodes

    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: its int8 codes are made by"):
        broken(tmp_path, narrow, monkeypatch)


def test_a_cache_of_another_layer(tmp_path, monkeypatch):
    def share(nodes):
        writes = places(nodes, "llama::update_cache")
        cache, other = (nodes[writes[place]].arguments[1] for place in (2, 8))
        swap = {id(other): cache}
        return [
            replace(node, arguments=tuple(swap.get(id(value), value) for value in node.arguments))
            if isinstance(node, Kernel)
            else node
            for node in nodes
        ]

    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: its cache belongs to another layer too"):
        broken(tmp_path, share, monkeypatch)


def test_kernels_that_would_stop_the_process_get_no_wrong_types(tmp_path):
    from pocketlm.runtimes.pte_check import check_quantizing

    choose = "quantized_decomposed::choose_qparams_per_token_asymmetric"

    def tensor(sizes, kind):
        return {"sizes": sizes, "scalar_type": kind}

    x = tensor([1, 4, 2, 8], "FLOAT")
    good = [x, tensor([1, 4, 2, 1], "DOUBLE"), tensor([1, 4, 2, 1], "LONG")]
    check_quantizing(choose, good)
    for wrong in (tensor([1, 4, 2, 1], "FLOAT"), tensor([1, 4, 1, 1], "DOUBLE")):
        with pytest.raises(ValueError, match=choose):
            check_quantizing(choose, [x, wrong, good[2]])


def test_a_bundle_says_so_and_another_cache_fails_its_verification(tmp_path):
    from pocketlm import export, verify

    bundle = tmp_path / "bundle"
    report = export(str(source()), bundle, recipe="int4-rtn", to=["executorch"], cache="int8", context=CONTEXT)
    found = report.certificate.targets["executorch"]
    assert read_manifest(bundle).caches == {"executorch": "int8-head"}
    assert found.cache.kl > 1e-8
    assert found.exactness.deviation <= 1e-5
    assert verify(bundle).passed
    write_executorch(bundle / "executorch", *model("int4"), CONTEXT)
    with pytest.raises(InputError, match="self_attn: its cache is fp32 in the file, int8-head in the manifest"):
        verify(bundle)
