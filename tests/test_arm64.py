"""Artifacts on emulated ARM cores: what really runs there, and that the judge follows it."""

import json

import numpy as np
import onnx
import pytest
import torch
from arm64_lane import prepared_lane, run_on
from onnx import TensorProto, helper, numpy_helper
from pocketlm.export.config import parse_config
from pocketlm.export.to_onnx import block_of, packed_codes
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.runtimes.arm64_arithmetic import emulation
from pocketlm.runtimes.arm64_target import arm64_runs, on_arm64
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.executorch_session import ExecuTorchSession
from pocketlm.runtimes.golden import first_sequences, read_golden, replay_kl
from pocketlm.runtimes.judge import shipped_logits
from pocketlm.runtimes.metrics import deviation
from pocketlm.runtimes.onnx_arithmetic import int8_on_arm
from pocketlm.runtimes.session import ArtifactError
from pocketlm.runtimes.targets import get_target
from pocketlm.runtimes.verify import verify
from tiny import tiny_llama


@pytest.fixture(scope="module")
def lane():
    return prepared_lane()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm64")
    model = tiny_llama(folder / "m", tied=True, hidden=64, intermediate=192)
    export(str(model), folder / "b", to=("onnx", "executorch"), recipe="int4", context=128)
    return folder / "b"


CASES = [(4, 16, 96), (4, 32, 576), (4, 64, 192), (4, 128, 512), (8, None, 96), (8, None, 192)]
OPERATOR = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        np.save(f"{path}.{rows}.npy", session.run(None, {"x": np.load(f"{path}.x.npy")[:rows]})[0])
"""


def operator(folder, bits, group, columns):
    """A MatMulNBits at accuracy level 4 beside its input; returns (path, weight, input)."""
    random = np.random.default_rng(bits * columns)
    weight = round_to_nearest((random.standard_normal((48, columns)) * 0.05).astype(np.float32), bits, group)
    x = random.standard_t(3, (5, columns)).astype(np.float32)
    block = block_of(weight)
    blocks = -(-columns // block)
    scales = weight.scales if weight.scales.shape[1] == blocks else np.repeat(weight.scales, blocks, 1)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=columns, N=48, bits=bits, block_size=block, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(packed_codes(weight, block).reshape(48, blocks, -1), "codes"),
         numpy_helper.from_array(scales, "scales")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = folder / f"{bits}-{block}-{columns}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    np.save(f"{path}.x.npy", x)
    return path, weight, x


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76"])
def test_the_emulated_arithmetic_is_that_of_the_operator_on_this_core(tmp_path, lane, core):
    cases = [operator(tmp_path, *case) for case in CASES]
    run_on(lane, core, OPERATOR, *(path for path, _, _ in cases))
    for path, weight, x in cases:
        exact = x.astype(np.float64) @ weight.dequantize().T.astype(np.float64)
        rounded = int8_on_arm(torch.from_numpy(x), weight).double().numpy() @ weight.dequantize().T.astype(np.float64)
        expected, other = (exact, rounded) if core == "cortex-a53" else (rounded, exact)
        for rows in (1, 5):
            found = np.load(f"{path}.{rows}.npy")
            # int8 weights on cores without matrix products: 128 times the sum of a block is subtracted again in fp32
            assert np.abs(found - expected[:rows]).max() <= (5e-5 if weight.bits == 8 else 1e-5), path.name
            assert np.abs(found - other[:rows]).max() > 1e-3, "both arithmetics agree: this shows nothing"


def test_a_core_with_dot_products_passes_and_uses_them(lane, bundle, tmp_path, capsys):
    arguments = ["verify", str(bundle), "--on", "arm64:cortex-a76", "--sequences", "1", "--json"]
    assert run([*arguments, "--junit", str(tmp_path / "r.xml")]) == 0
    targets = json.loads(capsys.readouterr().out)["targets"]
    assert list(targets) == ["onnx arm64:cortex-a76", "executorch arm64:cortex-a76"]
    for target in targets.values():
        assert target["weights_identical"]
        assert target["conversion"]["kl"] <= 1e-9
        assert target["activation"]["kl"] > 1e-5
        assert target["hardware"]["instructions"]["sdot"] > 0
        assert "smmla" not in target["hardware"]["instructions"]
        assert target["hardware"]["peak_memory_bytes"] < target["hardware"]["memory_limit_bytes"]
    assert 'name="memory"' in (tmp_path / "r.xml").read_text()


@pytest.mark.parametrize(
    ("core", "there", "absent"),
    [("cortex-a53", "smlal", "sdot"), ("cortex-a55", "sdot", "smmla"), ("max", "smmla", "smlal")],
)
def test_executorch_takes_the_kernels_of_the_core(lane, bundle, core, there, absent):
    certificate = verify(bundle, ["executorch"], on=[f"arm64:{core}"], sequences=1)
    target = certificate.targets[f"executorch arm64:{core}"]
    assert target.failures == ()
    assert target.hardware.instructions[there] > 0
    assert absent not in target.hardware.instructions


def test_without_dot_products_onnx_computes_in_fp32_and_the_certificate_says_so(lane, bundle):
    golden = first_sequences(read_golden(bundle), 1)
    with arm64_runs(lane, "cortex-a53", None) as runs:
        target = on_arm64(get_target("onnx"), runs)
        found = shipped_logits(target.open_session(bundle / "onnx", 1), golden.evaluation)
        hardware = runs.hardware(None)
    assert replay_kl(golden.targets["onnx-fp32"]["expected"], found) <= 1e-9
    assert replay_kl(golden.targets["onnx-arm64"]["expected"], found) > 1e-5
    assert target.emulate is None
    assert not {"sdot", "smmla", "smlal"} & set(hardware.instructions)
    assert any("silently computes with fp32 activations" in note for note in target.notes)


def test_the_arithmetic_of_x86_is_another_one(bundle):
    """What golden.json keeps for ARM is needed: by the entry of x86 a correct phone would fail."""
    golden = read_golden(bundle)
    config = parse_config(json.loads((bundle / "pocketlm.json").read_text())["config"])
    weights = get_target("onnx").read_back(bundle / "onnx", config).weights
    tokens = golden.evaluation.tokens
    x86, arm = (emulation(name)(weights, config, tokens, first=golden.evaluation.first) for name in NAMES)
    assert deviation(x86, arm).kl > golden.targets["onnx"]["tolerance_kl"]
    assert set(golden.targets) == {"onnx", "onnx-arm64", "onnx-fp32", "executorch"}


NAMES = ("onnx", "onnx-arm64")


def test_a_machine_that_is_arm64_itself_runs_its_own_runtimes(bundle, monkeypatch):
    """The path without an emulator, on this machine: ExecuTorch computes the same on any processor."""
    monkeypatch.setattr("pocketlm.runtimes.arm64_lane.is_native", lambda: True)
    target = verify(bundle, ["executorch"], on=["arm64"], device="iphone-13").targets["executorch arm64"]
    assert target.failures == ()
    assert target.hardware.core == "native"
    assert target.hardware.instructions is None
    assert target.hardware.device == "Apple iPhone 13"


def test_a_memory_limit_is_a_verdict(lane, bundle):
    with arm64_runs(lane, "cortex-a76", 1 << 20) as runs, pytest.raises(ArtifactError, match="memory: needs more than"):
        shipped_logits(runs.open_shipped("executorch", bundle / "executorch", 1), read_golden(bundle).evaluation)


def test_a_damaged_program_is_a_verdict(lane, bundle, tmp_path):
    content = bytearray((bundle / "executorch/model.pte").read_bytes())
    (tmp_path / "model.pte").write_bytes(content[: len(content) // 2])
    with arm64_runs(lane, "cortex-a76", None) as runs, pytest.raises(ArtifactError, match="runtime: could not run"):
        runs.open_shipped("executorch", tmp_path, 1)


def test_the_runner_follows_a_conversation(lane, bundle):
    """Chunks of a prompt, single tokens and a reset, against the same program on this machine."""
    here = ExecuTorchSession(bundle / "executorch")
    tokens = np.random.default_rng(3).integers(3, 512, 20).tolist()
    with arm64_runs(lane, "cortex-a76", None) as runs:
        there = runs.open_shipped("executorch", bundle / "executorch", 1)
        assert (there.context, there.vocab_size) == (here.context, here.vocab_size)
        for session in (here, there):
            session.run(tokens[:3])
            session.reset()
        for part in (tokens[:7], tokens[7:8], tokens[8:]):
            expected, found = here.run(part).copy(), there.run(part)
            assert np.abs(expected - found).max() <= 0.2 * expected.std()
            assert there.position == here.position


def test_both_sessions_are_closed_with_their_context(lane, bundle):
    with arm64_runs(lane, "cortex-a76", None) as runs:
        runs.open_shipped("executorch", bundle / "executorch", 1)
        process = runs.sessions[0]._process
        scratch = runs.scratch
    assert process.poll() is not None
    assert not scratch.exists()
