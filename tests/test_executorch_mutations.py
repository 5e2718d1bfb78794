"""Break a .pte in every way we can think of: each must be found, and named."""

import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from executorch_models import CONTEXT, model, write
from pocketlm.errors import InputError
from pocketlm.export.bundle import fingerprint
from pocketlm.export.executorch_graph import Kernel
from pocketlm.export.to_executorch import write_executorch
from pocketlm.quantize.tensor import QuantizedTensor
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.pte_check import check_caches
from pocketlm.runtimes.pte_file import Pte
from pocketlm.runtimes.pte_reader import read_back
from pocketlm.runtimes.pte_report import inspect_pte

pytest.importorskip("executorch")

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def pte(tmp_path):
    write(tmp_path, "int4")
    return tmp_path / "model.pte"


def differences(path, recipe="int4"):
    config, weights = model(recipe)
    expected = {name: fingerprint(tensor) for name, tensor in weights.items()}
    return check_identity(read_back(path.parent, config), expected, config).differences


def place_of(path, key):
    """Where the data named ``key`` lie in the file."""
    pte = Pte(path)
    (entry,) = [entry for entry in pte.program["named_data"] if entry["key"] == key]
    return pte.segment(entry["segment_index"]).ctypes.data - pte._bytes.ctypes.data


def patch(path, place, content):
    data = bytearray(path.read_bytes())
    data[place : place + len(content)] = content
    path.write_bytes(data)


def test_an_untouched_file_has_no_differences(pte):
    assert differences(pte) == ()


def test_one_flipped_bit_of_a_weight(pte):
    place = place_of(pte, DOWN)
    patch(pte, place, bytes([pte.read_bytes()[place] ^ 1]))
    assert differences(pte) == (f"{DOWN}: codes differ from the canonical ones",)


def test_two_swapped_scales(pte):
    place = place_of(pte, f"{DOWN}:scales")
    data = pte.read_bytes()
    patch(pte, place, data[place + 2 : place + 4] + data[place : place + 2])
    assert differences(pte) == (f"{DOWN}: scales differ from the canonical ones",)


def test_a_flipped_bit_of_a_tied_table_concerns_embedding_and_head(pte):
    place = place_of(pte, "model.embed_tokens.weight")
    patch(pte, place, bytes([pte.read_bytes()[place] ^ 1]))
    lines = differences(pte)
    assert [line.partition(":")[0] for line in lines] == ["model.embed_tokens.weight", "lm_head.weight (tied)"]


def test_another_epsilon(pte):
    patch(pte, place_of(pte, "epsilon 1e-05"), struct.pack("<f", 1e-6))
    lines = differences(pte)
    assert len(lines) == 5
    assert all("epsilon is 9.99999997e-07 in the file, 1e-05 in the model" in line for line in lines)


def test_another_mean(pte):
    patch(pte, place_of(pte, "mean of 64"), struct.pack("<f", 1 / 63))
    with pytest.raises(InputError, match=r"input_layernorm.*does not take the mean of squares"):
        read_back(pte.parent, model("int4")[0])


def write_changed(folder, change):
    """Write the model with operations changed by ``change`` (nodes -> nodes)."""

    config, weights = model("int4")
    from pocketlm.export import to_executorch

    original = to_executorch.divide
    try:
        to_executorch.divide = lambda nodes, results: original(change(list(nodes)), results)
        write_executorch(folder, config, weights, CONTEXT)
    finally:
        to_executorch.divide = original
    return config


def kernels(nodes, name):
    return [index for index, node in enumerate(nodes) if isinstance(node, Kernel) and node.op.startswith(name)]


def test_a_dropped_cache_update(tmp_path):
    def drop(nodes):
        del nodes[kernels(nodes, "llama::update_cache")[3]]
        return nodes

    config = write_changed(tmp_path, drop)
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: cache: the model has llama::update_cache here"):
        read_back(tmp_path, config)


def test_a_cache_of_another_layer(tmp_path):
    def share(nodes):
        first, second = (nodes[index] for index in (kernels(nodes, "llama::update_cache")[i] for i in (0, 2)))
        cache, other = first.arguments[1], second.arguments[1]
        swap = {id(other): cache}
        return [
            replace(node, arguments=tuple(swap.get(id(value), value) for value in node.arguments))
            if isinstance(node, Kernel)
            else node
            for node in nodes
        ]

    config = write_changed(tmp_path, share)
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn: its cache belongs to another layer too"):
        read_back(tmp_path, config)


def test_a_cache_that_is_read_too_early(tmp_path):
    def delay(nodes):
        index = kernels(nodes, "llama::update_cache")[1]
        nodes[index], nodes[index + 1] = nodes[index + 1], nodes[index]
        return nodes

    config = write_changed(tmp_path, delay)
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn: it reads the cache before"):
        read_back(tmp_path, config)


def test_gate_and_up_in_the_wrong_order(tmp_path):
    def swap(nodes):
        gate = next(i for i, node in enumerate(nodes) if node.op == "XNNFullyConnected" and "gate" in filter_key(node))
        left, right = nodes[gate], nodes[gate + 1]
        nodes[gate] = replace(left, inputs={**left.inputs, "filter_id": right.inputs["filter_id"]})
        nodes[gate + 1] = replace(right, inputs={**right.inputs, "filter_id": left.inputs["filter_id"]})
        return nodes

    write_changed(tmp_path, swap)
    lines = differences(tmp_path / "model.pte")
    assert [line.partition(":")[0] for line in lines] == [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ]


def filter_key(node):
    return node.inputs["filter_id"].key


def test_weight_only_linears_are_found(tmp_path):
    """ExecuTorch lowers them without an error and computes wrong results."""

    def drop_conversions(nodes):
        sources = {id(node.output): node.inputs["input_id"] for node in nodes if node.op == "XNNConvert"}
        return [
            replace(node, inputs={name: sources.get(id(value), value) for name, value in node.inputs.items()})
            if node.op == "XNNFullyConnected"
            else node
            for node in nodes
            if node.op != "XNNConvert"
        ]

    config = write_changed(tmp_path, drop_conversions)
    with pytest.raises(InputError, match=r"q_proj.weight: quantised weights without int8 activations"):
        read_back(tmp_path, config)


def test_a_kernel_that_has_no_business_there(tmp_path):
    from pocketlm.runtimes import pte_flow

    write(tmp_path, "int4")
    allowed = dict(pte_flow.KERNELS)
    allowed.pop("llama::custom_sdpa")
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(pte_flow, "KERNELS", allowed)
        with pytest.raises(InputError, match="llama::custom_sdpa: it runs outside XNNPACK"):
            read_back(tmp_path, model("int4")[0])


def test_another_operation_outside_xnnpack_fails_the_export(tmp_path):
    def degrade(nodes):
        index = next(i for i, node in enumerate(nodes) if node.op == "XNNSigmoid")
        nodes[index] = Kernel("aten::sigmoid.out", (nodes[index].inputs["input_id"],), nodes[index].output)
        return nodes

    with pytest.raises(RuntimeError, match="fell out of XNNPACK: aten::sigmoid"):
        write_changed(tmp_path, degrade)
    assert not list(tmp_path.iterdir())


def test_another_rotary_table(pte):
    pte_file = Pte(pte)
    values = [value["val"] for value in pte_file.plan["values"]]
    table = next(i for i, v in enumerate(values) if v.get("sizes") == [CONTEXT, 1, 32] and v["data_buffer_idx"])
    place = pte_file.constant(table).ctypes.data - pte_file._bytes.ctypes.data
    patch(pte, place + 32 * 4, struct.pack("<f", 0.5))
    with pytest.raises(InputError, match="rotary cosines: the table differs"):
        read_back(pte.parent, model("int4")[0])


def test_a_model_of_another_shape(pte):
    config = model("int4")[0]
    for changed in (
        replace(config, layers=config.layers[:1]),
        replace(config, layers=config.layers + config.layers[:1]),
    ):
        with pytest.raises(InputError):
            read_back(pte.parent, changed)


def test_files_that_are_no_pte(tmp_path):
    path = tmp_path / "model.pte"
    with pytest.raises(InputError, match=r"not a readable \.pte"):
        inspect_pte(path)
    for content, message in (
        (b"", r"not a readable \.pte"),
        (b"PK" + b"\0" * 100, "not a .pte file"),
        (b"\x40\0\0\0ET13" + b"\0" * 100, "format ET13 of another ExecuTorch version"),
        (b"\x40\0\0\0ET12" + b"\0" * 100, "no extended header"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            inspect_pte(path)
        assert "\n" not in str(caught.value)


def test_a_file_of_another_version_or_a_damaged_one_does_not_open(pte):
    from pocketlm.runtimes.executorch_session import ExecuTorchSession

    whole = pte.read_bytes()
    for content in (whole[:4] + b"ET99" + whole[8:], whole[: len(whole) // 2], whole[:30]):
        pte.write_bytes(content)
        with pytest.raises(InputError, match="export the model again") as caught:
            ExecuTorchSession(pte.parent)
        assert "\n" not in str(caught.value)


def test_truncated_and_scrambled_files_give_one_line(pte):
    """Whatever is in the file: it is read, or refused in one line."""
    whole = pte.read_bytes()
    rng = np.random.default_rng(0)
    config = model("int4")[0]
    start = Pte(pte)._start
    for round_ in range(150):
        data = bytearray(whole[: rng.integers(0, len(whole))] if round_ % 5 == 0 else whole)
        size = start if round_ % 2 else len(data)
        for place in rng.integers(0, max(1, min(size, len(data))), 3 if data else 0):
            data[place] = rng.integers(0, 256)
        pte.write_bytes(data)
        for attempt in (lambda: inspect_pte(pte), lambda: read_all(read_back(pte.parent, config).weights)):
            assert "\n" not in refusal(attempt)


def refusal(attempt):
    try:
        attempt()
    except InputError as error:
        return str(error)
    return ""


def read_all(weights):
    for name in weights:
        tensor = weights[name]
        (tensor.codes if isinstance(tensor, QuantizedTensor) else tensor).sum()


def test_a_program_that_native_code_must_not_be_given(tmp_path):
    """One bit anywhere in the program or in XNNPACK's graphs: refused in one line, or it runs. It never crashes."""
    write(tmp_path, "int4")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from pocketlm.errors import InputError\n"
        "from pocketlm.runtimes.executorch_session import ExecuTorchSession\n"
        "from pocketlm.runtimes.pte_file import Pte\n"
        "path = Path(sys.argv[1]) / 'model.pte'\n"
        "whole, pte = path.read_bytes(), Pte(path)\n"
        "places = [pte.program['segments'][d['processed']['index']] for d in pte.plan['delegates']]\n"
        "parts = [(p['offset'] + pte._start, p['size']) for p in places] + [(0, pte._start)] * len(places)\n"
        "rng, refused = np.random.default_rng(3), 0\n"
        "for _ in range(120):\n"
        "    data, (start, size) = bytearray(whole), parts[rng.integers(len(parts))]\n"
        "    data[start + rng.integers(size)] ^= 1 << rng.integers(8)\n"
        "    path.write_bytes(data)\n"
        "    try:\n"
        "        ExecuTorchSession(path.parent).run([3, 4, 5])\n"
        "    except InputError as error:\n"
        "        refused += 1\n"
        "        assert '\\n' not in str(error)\n"
        "print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 60


def test_every_kernel_has_a_signature():
    from pocketlm.export.to_executorch import KERNELS
    from pocketlm.runtimes.pte_check import SIGNATURES

    assert set(SIGNATURES) == set(KERNELS)


def cache_tensors(plan):
    """The caches' tensors, in the order in which they are written."""
    calls = [call["instr_args"] for chain in plan["chains"] for call in chain["instructions"]]
    names = [operator["name"] for operator in plan["operators"]]
    updates = [c for c in calls if c["type"] == "KernelCall" and names[c["op_index"]] == "llama::update_cache"]
    return [plan["values"][call["args"][1]]["val"] for call in updates]


def test_caches_in_each_others_memory(pte):
    plan = Pte(pte).plan
    check_caches(plan)
    first, second = cache_tensors(plan)[:2]
    place = first["allocation_info"]["memory_offset_low"]
    second["allocation_info"]["memory_offset_low"] = place + 4 * int(np.prod(first["sizes"])) - 64
    with pytest.raises(ValueError, match="a cache in another's memory"):
        check_caches(plan)


def test_caches_of_different_lengths(pte):
    plan = Pte(pte).plan
    cache_tensors(plan)[1]["sizes"][1] -= 8
    with pytest.raises(ValueError, match="caches of"):
        check_caches(plan)
