"""`pocketlm bench`: what it counts and how it shows it. No test asserts a time."""

import json

import pytest
from pocketlm.runtimes import bench as bench_module
from pocketlm.runtimes.bandwidth import Bandwidth, best_of, measure_bandwidth
from pocketlm.runtimes.bench import Run, bench
from pocketlm.runtimes.bench_table import bench_table
from pocketlm.runtimes.cli import run


@pytest.fixture(scope="module")
def bundle(tiny_folder, tmp_path_factory):
    from pocketlm.runtimes.build import export

    folder = tmp_path_factory.mktemp("bench") / "bundle"
    export(str(tiny_folder), folder, recipe="int4-rtn")
    return folder


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    """256 MB are more than a test needs."""
    monkeypatch.setattr(bench_module, "measure_bandwidth", lambda threads: measure_bandwidth(threads, 1 << 16))


def test_several_lengths(bundle):
    found = bench(bundle, new_tokens=4, runs=3, threads=1, lengths=(64, 8, 8, 300))
    assert (found["prompt_tokens"], found["lengths"], found["left_out"]) == (64, [64, 8], [300])
    assert bench_table(found).caption == "Left out, as the context has no room for them and the new tokens: 300"
    onnx = found["targets"]["onnx"]
    assert list(onnx["lengths"]) == ["64", "8"]
    for measured in onnx["lengths"].values():
        speeds = sorted(entry["decode_tokens_per_second"] for entry in measured["runs"])
        assert len(speeds) == 3
        assert measured["decode_tokens_per_second"] == speeds[1]
        assert measured["spread"]["decode_tokens_per_second"] == pytest.approx((speeds[2] - speeds[0]) / 2)
        achieved = measured["decode_bytes_per_token"] * speeds[1]
        assert measured["decode_bytes_per_second"] == pytest.approx(achieved)
        assert measured["share_of_bandwidth"] == pytest.approx(achieved / found["memory_bandwidth"]["best"])
    assert onnx["runs"] == onnx["lengths"]["64"]["runs"]
    assert 0 < onnx["artifact_memory_bytes"] <= onnx["peak_memory_bytes"]
    json.dumps(found)


def test_bytes_of_a_token_are_the_weights_and_the_cache(bundle):
    """By hand: int4 in groups of 32 with float32 scales, a head of 8 bits, and float32 keys and values."""
    layers = 2 * (64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 160)
    weights = layers // 2 + layers // 32 * 4 + 512 * 64 + 512 * 4
    found = bench(bundle, new_tokens=4, runs=1, threads=1, lengths=(16,))["targets"]["onnx"]["lengths"]["16"]
    assert found["decode_bytes_per_token"] == weights + (16 + 2) * 2 * 2 * 64 * 4
    assert found["spread"]["decode_tokens_per_second"] == 0


def test_the_command(bundle, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    options = [str(bundle), "--new-tokens", "2", "--runs", "2", "--threads", "1"]
    assert run(["bench", *options, "--lengths", "4", "32"]) == 0
    shown = capsys.readouterr().out
    assert "Memory bandwidth: " in shown
    assert "…" not in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith(" onnx ")]
    assert [row[1] for row in rows] == ["4", "32"]
    assert run(["bench", *options, "--prompt-tokens", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"] == [5]
    assert run(["bench", *options, "--lengths", "255", "400"]) == 2
    assert "255 + 2 tokens do not fit the context of 256" in capsys.readouterr().err


def test_bandwidth_is_bytes_over_time():
    found = measure_bandwidth(2, 1 << 20)
    assert found.best == max(found.read, found.copy)
    assert found.read > 0
    assert best_of(Bandwidth(1, 4, 2), Bandwidth(2, 3, 2)) == Bandwidth(2, 4, 2)
    assert "in 2 threads" in found.how


def test_a_series_of_one_has_no_spread():
    assert bench_module._spread([3.0]) == 0
    assert bench_module._spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2
    assert list(Run.__dataclass_fields__) == list(bench_module._FIELDS)
