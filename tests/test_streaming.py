"""Weights stream: rows by rows, in bounded memory, the same bytes whatever the threads, resumed after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export import canonical, coreml_weights
from pocketlm.export.bundle import staging
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.store import CanonicalFile, CanonicalWriter, save_pieces
from pocketlm.quantize.tensor import QuantizedTensor, same
from pocketlm.runtimes import quantise_model
from pocketlm.runtimes.build import export
from pocketlm.runtimes.certificate import certificate_from_json
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.peak_memory import PeakMemory
from pocketlm.runtimes.verify import verify
from tiny import tiny_gguf, tiny_llama
from tiny_families import family_folder

MEGABYTE = 1 << 20


def tensors_equal(left, right):
    if isinstance(left, QuantizedTensor) or isinstance(right, QuantizedTensor):
        return same(left, right)
    return left.dtype == right.dtype and np.array_equal(left, right)


def quantised(path, checkpoint, recipe, threads=2):
    """The file of canonical weights, opened."""
    names = list(checkpoint.names())
    pieces = quantize_checkpoint(checkpoint, names, load_recipe(recipe), lambda error: None, threads=threads)
    save_pieces(path, names, pieces)
    return CanonicalFile(path)


def sources(folder):
    """A checkpoint of each kind of reader and layout."""
    llama = tiny_llama(folder / "llama", dtype="bfloat16", attention_bias=True)
    yield open_checkpoint(str(llama))
    yield open_checkpoint(str(tiny_llama(folder / "half", dtype="float16", shards=2)))
    for kind in ("F32", "Q8_0", "Q4_0"):  # rows of queries and keys have another order there
        yield open_checkpoint(str(tiny_gguf(folder / f"{kind}.gguf", tiny_llama(folder / kind, tied=True), kind)))
    for name in ("phi3", "phi4", "gemma2", "gpt2", "gpt_neox"):  # fused, turned, permuted, with an offset
        yield open_checkpoint(str(family_folder(name)))


def test_rows_of_every_reader_are_those_of_the_whole(tmp_path):
    for checkpoint in sources(tmp_path):
        for name in checkpoint.names():
            whole = checkpoint.read(name)
            for start, stop in ((0, 1), (5, 23), (17, None), (0, None)):
                part = checkpoint.read(name, start, stop)
                assert np.array_equal(part, whole[start:stop]), (checkpoint.files, name, start, stop)
                assert part.flags.writeable


def test_pieces_and_threads_change_no_byte(tmp_path, monkeypatch):
    for index, checkpoint in enumerate(sources(tmp_path)):
        whole = quantised(tmp_path / f"{index}", checkpoint, "int4-rtn")
        with monkeypatch.context() as patch:
            patch.setattr(canonical, "PIECE_VALUES", 1000)
            files = []
            for threads in (1, 3):
                path = tmp_path / f"{index} {threads}"
                quantised(path, checkpoint, "int4-rtn", threads)
                files.append(path.read_bytes())
        assert files[0] == files[1] == (tmp_path / f"{index}").read_bytes()
        assert set(whole) == set(checkpoint.names())


def test_one_value_too_large_for_fp16_keeps_the_whole_matrix_in_fp32(tmp_path, monkeypatch):
    from safetensors.numpy import load_file, save_file

    folder = tiny_llama(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state[name][-1, -1] = 1e6
    save_file(state, folder / "model.safetensors")
    monkeypatch.setattr(canonical, "PIECE_VALUES", 1000)
    weights = quantised(tmp_path / "w", open_checkpoint(str(folder)), "fp16")
    assert tensors_equal(weights[name], state[name])
    assert weights["model.layers.1.mlp.up_proj.weight"].dtype == np.float16


def test_a_writer_that_was_given_up_leaves_nothing(tmp_path):
    def failing():
        yield "a", np.ones(4, np.float32)
        raise RuntimeError("the reader failed")

    with pytest.raises(RuntimeError, match="the reader failed"):
        save_pieces(tmp_path / "w", ["a", "b"], failing())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def journalled(tmp_path):
    """(path, names, tensors) of a file whose writer was killed behind the second of four tensors."""
    names = ["a", "b", "c", "d"]
    tensors = {name: np.full((3, 4), index, np.float32) for index, name in enumerate(names)}
    path = tmp_path / "w"
    writer = CanonicalWriter(path, names, key="k")
    for name in names[:3]:  # the third is not known to be complete
        writer.add(name, tensors[name], remark=ord(name))
    del writer
    return path, names, tensors


def finish(path, names, tensors, key):
    with CanonicalWriter(path, names, key=key) as writer:
        finished = dict(writer.finished)
        for name in names:
            if name not in finished:
                writer.add(name, tensors[name], remark=ord(name))
    return finished


def test_what_a_killed_writer_finished_is_taken_over(journalled):
    path, names, tensors = journalled
    assert finish(path, names, tensors, "k") == {"a": ord("a"), "b": ord("b")}
    found = CanonicalFile(path)
    assert all(tensors_equal(found[name], tensors[name]) for name in names)
    assert list(finish(path, names, tensors, "k")) == names  # a finished file too


@pytest.mark.parametrize("damage", ["key", "byte", "short", "journal"])
def test_what_is_not_known_to_be_sound_is_done_again(journalled, damage):
    path, names, tensors = journalled
    partial, journal = path.with_name("w.partial"), path.with_name("w.journal")
    content = bytearray(partial.read_bytes())
    if damage == "byte":
        content[-3 * 48 + 1] ^= 1  # in the first tensor
        partial.write_bytes(content)
    elif damage == "short":
        partial.write_bytes(content[: -2 * 48 - 1])
    elif damage == "journal":
        journal.write_bytes(journal.read_bytes()[:-20])  # the line of the second tensor breaks off
    kept = finish(path, names, tensors, "other" if damage == "key" else "k")
    assert list(kept) == (["a"] if damage == "journal" else [])
    found = CanonicalFile(path)
    assert all(tensors_equal(found[name], tensors[name]) for name in names)


def big_llama(folder, layers=2, vocab=512):
    """Matrices large enough to take time, and to be seen in the memory of a process."""
    return tiny_llama(
        folder, layers=layers, hidden=512, intermediate=1536, heads=8, kv_heads=4, head_dim=64, vocab=vocab,
        dtype="bfloat16",
    )  # fmt: skip


def content(folder):
    """All files of a bundle but those that hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "pocketlm.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_export_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    model, out = big_llama(tmp_path / "model", layers=6), tmp_path / "out" / "b"
    options = {"recipe": "int4-rtn", "certify": "identity"}
    export(str(model), tmp_path / "expected", **options)
    command = [sys.executable, "-m", "pocketlm", "export", str(model), "-o", str(out), "--recipe", "int4-rtn"]
    process = subprocess.Popen([*command, "--certify", "identity"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        journals = list(out.parent.glob(".b.*/.canonical/weights.safetensors.journal"))
        if journals and journals[0].read_bytes().count(b"\n") > 4:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert not out.exists()
    asked = []
    quantize = quantise_model.quantize_checkpoint

    def listening(checkpoint, names, *arguments):
        asked.extend(names)
        return quantize(checkpoint, names, *arguments)

    monkeypatch.setattr(quantise_model, "quantize_checkpoint", listening)
    report = export(str(model), out, **options)
    assert report.resumed == len(open_checkpoint(str(model)).names()) - len(asked)
    assert len(asked) <= len(open_checkpoint(str(model)).names()) - 4
    assert content(out) == content(tmp_path / "expected")
    before, after = (json.loads((folder / "pocketlm.json").read_text()) for folder in (tmp_path / "expected", out))
    assert after["quantization"] == before["quantization"]
    assert [path.name for path in out.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("at", [600_000, 5_000_000, -1])
def test_other_weights_of_the_same_size_and_age_are_not_taken_for_the_same(tmp_path, at):
    """Another model of the same shape differs nearly everywhere; here 16 KB of 7 MB are other, or the last byte."""
    model = big_llama(tmp_path / "model", layers=1)
    checkpoint = open_checkpoint(str(model))
    source = quantise_model.open_source(checkpoint, parse_config(checkpoint.config), None)
    recipe, (path,) = load_recipe("int4-rtn"), checkpoint.files
    before, status = quantise_model._key(source, recipe), path.stat()
    assert quantise_model._key(source, recipe) == before
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        kept = file.read(1 << 14)
        file.seek(-len(kept), os.SEEK_CUR)
        file.write(bytes(255 - byte for byte in kept))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert quantise_model._key(source, recipe) != before


def test_a_phase_remembers_what_it_took_and_gave_back():
    memory = PeakMemory()
    with memory.phase("small"):
        pass
    with memory.phase("large"):
        np.ones(200 * MEGABYTE, np.uint8)
    with memory.phase("after"):
        pass
    assert memory.phases["large"] >= memory.phases["small"] + 190 * MEGABYTE
    assert memory.peak == memory.phases["large"]
    if sys.platform == "linux":
        assert memory.phases["after"] <= memory.phases["large"] - 190 * MEGABYTE


PEAKS = """
import sys
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.store import CanonicalFile, save_pieces
from pocketlm.runtimes.peak_memory import PeakMemory, resident_bytes
from pocketlm.runtimes.target import Details
from pocketlm.runtimes.targets import get_target
from pathlib import Path
import onnx
model, folder = sys.argv[1], Path(sys.argv[2])
checkpoint, memory = open_checkpoint(model), PeakMemory()
names, before = list(checkpoint.names()), resident_bytes()
with memory.phase("all"):
    pieces = quantize_checkpoint(checkpoint, names, load_recipe("int4-rtn"), lambda error: None)
    save_pieces(folder / "w", names, pieces)
    for target in ("onnx", "executorch"):
        (folder / target).mkdir()
        weights = CanonicalFile(folder / "w")
        get_target(target).write(folder / target, parse_config(checkpoint.config), weights, 64, Details())
print(memory.peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a phase")
def test_quantising_and_writing_do_not_hold_a_large_tensor(tmp_path):
    """An embedding of 67 M values, 268 MB in float32: of it only pieces, and the pages of its mapped bytes."""
    model = big_llama(tmp_path / "model", layers=1, vocab=131072)
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(model), str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True
    )
    assert int(done.stdout) <= 200 * MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of another process")
@pytest.mark.parametrize(
    ("target", "certify", "more"),
    [
        ("onnx", "full", ["--recipe=int4-rtn"]),
        ("executorch", "identity", ["--recipe=int4-rtn"]),
        ("coreml", "identity", ["--recipe=int4-rtn"]),
        ("onnx", "identity", ["--recipe=int4-rtn", "--bits=5"]),
        ("onnx", "identity", ["--recipe={layerwise}", "--calibration={text}"]),
    ],
)
def test_a_limit_that_is_accepted_is_kept(tmp_path, target, certify, more):
    """In a process of its own, with the smallest limit that is not refused: what it needs stands in the refusal."""
    model = big_llama(tmp_path / "model", layers=2, vocab=16384)
    (tmp_path / "layerwise.toml").write_text('base = "int4"\nmethod = "layerwise"\n')
    (tmp_path / "text").write_text("How vainly men themselves amaze to win the palm, the oak, or bays. " * 200)
    more = [part.format(layerwise=tmp_path / "layerwise.toml", text=tmp_path / "text") for part in more]
    command = [sys.executable, "-m", "pocketlm", "export", str(model), "-o", str(tmp_path / "b"), "--to", target]
    command += [*more, "--certify", certify, "--json", "--context", "64", "--max-memory"]
    refused = subprocess.run([*command, "50MB"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert not (tmp_path / "b").exists()
    limit = refused.stderr.split("give --max-memory ")[1].split()[0].rstrip(",")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([*command, limit], stdout=out, stderr=subprocess.DEVNULL)
        highest = 0
        while process.poll() is None:
            highest = max(highest, high_water_mark(process.pid))
            time.sleep(0.01)
    assert process.returncode == 0
    report, allowed = json.loads((tmp_path / "out").read_text()), float(limit.removesuffix("GB")) * 1e9
    assert 0 < report["peak_memory_bytes"] <= allowed
    assert 0 < highest <= allowed, "by the kernel's count, to the very end of the process"
    assert report["passed"] is True


def high_water_mark(pid):
    """The most resident bytes a process had so far; 0 if it has none any more. (ru_maxrss would count its parent's.)"""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-memory", "50MB", "--recipe", "int4-rtn"], "or --certify identity, which runs nothing and needs"),
        (["--max-memory", "500MB"], "or a recipe that is rounded to nearest, like int4-rtn, which needs"),
        (
            ["--max-memory", "500MB", "--bits", "4.5", "--recipe", "int4-rtn", "--certify", "identity"],
            "to measure sensitivities takes",
        ),
        (["--max-memory", "much", "--recipe", "int4-rtn"], "a size is written like 90MB"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused_in_one_line(tmp_path, tiny_folder, capsys, arguments, expected):
    assert run(["export", str(tiny_folder), "-o", str(tmp_path / "b"), *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pocketlm:")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_what_identity_alone_leaves_out_is_written_down_and_can_be_measured_later(tmp_path, tiny_folder):
    report = export(str(tiny_folder), tmp_path / "b", recipe="int4-rtn", certify="identity")
    found = json.loads((tmp_path / "b" / "pocketlm.json").read_text())["certificate"]["targets"]["onnx"]
    assert report.certificate.passed
    assert certificate_from_json({"targets": {"onnx": found}}) == report.certificate
    assert found["weights_identical"] is True
    assert found["left_out"] == ["quantization", "conversion", "activation", "runtime", "total"]
    assert "conversion" not in found
    assert "nothing was run" in found["notes"][0]
    later = verify(tmp_path / "b", model=str(tiny_folder)).targets["onnx"]
    assert later.passed
    assert later.conversion.kl <= 1e-9
    assert later.total.kl > 0
    with pytest.raises(InputError, match="certify must be one of full, identity"):
        export(str(tiny_folder), tmp_path / "c", recipe="int4-rtn", certify="nothing")


@pytest.mark.parametrize("recipe", ["fp16", "mixed"])
def test_a_streamed_core_ml_package_is_the_one_that_coremltools_writes(tmp_path, monkeypatch, recipe):
    from coreml_models import CONTEXT, FUNCTIONS, model
    from pocketlm.export.to_coreml import write_coreml

    written = []
    for name, threshold in (("streamed", 64), ("whole", 1 << 40)):
        monkeypatch.setattr(coreml_weights, "_LARGE", threshold)
        config, weights = model(recipe, recipe != "mixed", recipe == "mixed")
        write_coreml(tmp_path / name, config, weights, CONTEXT, functions=FUNCTIONS)
        data = tmp_path / name / "model.mlpackage" / "Data" / "com.apple.CoreML"
        spec = coreml_weights.read_description(data / "model.mlmodel")
        written.append((spec.SerializeToString(deterministic=True), (data / "weights" / "weight.bin").read_bytes()))
    assert written[0][1] == written[1][1]
    assert written[0][0] == written[1][0]


_HOLD = (
    "import sys, time; from pathlib import Path; from pocketlm.export.bundle import staging\n"
    "with staging(Path(sys.argv[1]), False, 'kept') as folder:\n"
    "    (folder / 'kept').mkdir()\n"
    "    print(folder, flush=True); time.sleep(60)"
)


def test_processes_are_told_apart_where_their_numbers_are_not(tmp_path, monkeypatch):
    """As in containers: the next one has the number of the killed one, and a running one's means nothing here."""
    held = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path / "b")], stdout=subprocess.PIPE, text=True)
    folder = Path(held.stdout.readline().strip())
    same = folder.rename(folder.with_name(folder.name.replace(f".{held.pid}.", f".{os.getpid()}.")))
    monkeypatch.setattr("pocketlm.export.bundle._is_running", lambda process: process == os.getpid())
    with staging(tmp_path / "b", False, "kept") as own:
        assert same.exists()
        assert not (own / "kept").exists()
    held.kill()
    held.wait(60)
    shutil.rmtree(tmp_path / "b")
    with staging(tmp_path / "b", False, "kept") as own:
        assert not same.exists()
        assert (own / "kept").exists()
