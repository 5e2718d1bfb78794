"""`export` and `verify` as a user meets them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from pocketlm.errors import InputError, ParityError
from pocketlm.runtimes import quantise_model, targets
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.verify import verify
from tiny import tiny_llama


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export(str(tiny_folder), folder, recipe="int4-rtn", context=192)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Calibrations of tiny models are not kept among the user's."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def message(capsys):
    """What a failed command said: one line."""
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if line.startswith("pocketlm:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("recipe", ["int8", "fp16", "fp32"])
def test_every_recipe_passes_its_certificate(tmp_path, tiny_folder, recipe):
    report = export(str(tiny_folder), tmp_path / "b", recipe=recipe)
    onnx = report.certificate.targets["onnx"]
    assert onnx.passed
    assert onnx.weights_identical
    assert onnx.conversion.kl <= 1e-9
    assert (onnx.quantization.kl < 1e-12) == (recipe == "fp32")
    assert (onnx.activation.kl > 0) == (recipe == "int8")


def test_what_a_bundle_holds(bundle):
    manifest = json.loads((bundle / "pocketlm.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["context"] == 192
    assert manifest["stop_tokens"] == [2]
    assert manifest["certificate"]["passed"] is True
    onnx = manifest["certificate"]["targets"]["onnx"]
    assert {"kl", "top1", "perplexity_ratio"} <= set(onnx["quantization"])
    assert {"kl", "top1", "max_abs_logit"} <= set(onnx["conversion"])
    assert {"kl", "top1", "noise_floor_kl"} <= set(onnx["runtime"])
    assert onnx["tensors_checked"] == 15
    assert set(manifest["files"]) >= {"golden.json", "tokenizer.json", "onnx/model.onnx", "onnx/genai_config.json"}
    turns = json.loads((bundle / "chat_turns.json").read_text())
    assert turns["control"] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert set(manifest["files"]) | {"pocketlm.json"} == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    }


def test_verify_prints_json_and_writes_junit(bundle, tmp_path, capsys, tiny_folder):
    arguments = ["verify", str(bundle), "--json", "--junit", str(tmp_path / "r.xml"), "--reference", str(tiny_folder)]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert suite.get("tests") == "4"
    assert suite.get("failures") == "0"


def test_failed_parity_exits_with_1_and_fails_in_junit(bundle, tmp_path, capsys):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    data = np.memmap(damaged / "onnx" / "model.onnx.data", np.uint8, "r+")
    data[-1] ^= 0x40
    data.flush()
    assert run(["verify", str(damaged), "--no-hashes", "--junit", str(tmp_path / "r.xml")]) == 1
    assert "onnx: model.layers.1.mlp.down_proj.weight: scales differ" in message(capsys)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert suite.get("failures") == "1"
    assert run(["verify", str(damaged)]) == 2
    assert "sha256 differs" in message(capsys)


def test_a_failed_gate_leaves_nothing(tmp_path, tiny_folder, monkeypatch):
    recipe = tmp_path / "strict.toml"
    recipe.write_text('base = "int4-rtn"\n[thresholds]\n"quantization.kl" = 0.0\n')
    with pytest.raises(ParityError, match=r"onnx failed its certificate: quantization: KL .* exceeds 0; nothing was"):
        export(str(tiny_folder), tmp_path / "b", recipe=str(recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["strict.toml"]


def test_an_existing_bundle_is_kept_until_the_new_one_is_whole(tmp_path, tiny_folder, capsys):
    out = tmp_path / "b"
    assert run(["export", str(tiny_folder), "-o", str(out), "--json"]) == 0
    before = (out / "pocketlm.json").read_bytes()
    assert run(["export", str(tiny_folder), "-o", str(out)]) == 2
    assert "--overwrite" in message(capsys)
    strict = tmp_path / "strict.toml"
    strict.write_text('[thresholds]\n"total.kl" = 0.0\n')
    assert run(["export", str(tiny_folder), "-o", str(out), "--overwrite", "--recipe", str(strict)]) == 1
    assert (out / "pocketlm.json").read_bytes() == before
    assert run(["export", str(tiny_folder), "-o", str(out), "--overwrite", "--recipe", "int8", "--json"]) == 0
    assert (out / "pocketlm.json").read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"b", "strict.toml"}


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path, tiny_folder, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    assert run(["export", str(tiny_folder), "-o", str(tmp_path / "precious"), "--overwrite"]) == 2
    assert "is not a bundle" in message(capsys)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_what_appears_while_an_export_runs_is_kept(tmp_path, tiny_folder, monkeypatch, capsys):
    out = tmp_path / "b"
    quantize = quantise_model.quantize_checkpoint

    def meanwhile(*arguments, **options):
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        return quantize(*arguments, **options)

    monkeypatch.setattr(quantise_model, "quantize_checkpoint", meanwhile)
    assert run(["export", str(tiny_folder), "-o", str(out), "--recipe", "int4-rtn"]) == 2
    assert "exists; give --overwrite" in message(capsys)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [out]


def test_folders_made_for_a_failed_export_go_again(tmp_path, tiny_folder, capsys):
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "new" / "newer" / "b"
    strict = tmp_path / "strict.toml"
    strict.write_text('[thresholds]\n"total.kl" = 0.0\n')
    assert run(["export", str(tiny_folder), "-o", str(out), "--recipe", str(strict)]) == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_a_linked_folder_stays_a_link(tmp_path, tiny_folder):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    export(str(tiny_folder), tmp_path / "link", recipe="int4-rtn", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "pocketlm.json").is_file()


@pytest.mark.parametrize("place", ["a" * 300, "file/b", "file"])
def test_places_that_cannot_be_written(tmp_path, tiny_folder, capsys, place):
    (tmp_path / "file").write_text("mine")
    assert run(["export", str(tiny_folder), "-o", str(tmp_path / place), "--overwrite"]) == 2
    message(capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("context", [2, 3, 4, 5])
def test_the_shortest_contexts(tmp_path, tiny_folder, context):
    report = export(str(tiny_folder), tmp_path / "b", recipe="int4-rtn", context=context)
    assert report.certificate.targets["onnx"].conversion.kl <= 1e-9


def test_a_pattern_that_fits_nothing_is_refused(tmp_path, tiny_folder, capsys):
    recipe = tmp_path / "typo.toml"
    recipe.write_bytes(b'\xef\xbb\xbf[overrides]\n"*.qq_proj.*" = { kind = "int8" }\n')  # a byte order mark is no error
    assert run(["export", str(tiny_folder), "-o", str(tmp_path / "b"), "--recipe", str(recipe)]) == 2
    assert "fits the pattern '*.qq_proj.*'" in message(capsys)


def test_a_template_that_wants_more_than_a_question(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('need system') }}{% endif %}x"
    (folder / "chat_template.jinja").write_text(template)
    assert export(str(folder), tmp_path / "b", recipe="int4-rtn").certificate.passed


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_export_leaves_nothing_that_looks_finished(tmp_path, tiny_folder, stop):
    out = tmp_path / "b"
    command = [sys.executable, "-m", "pocketlm", "export", str(tiny_folder), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob(".b.*/onnx/model.onnx")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, stop)
    process.wait(60)
    assert process.returncode == (-9 if stop == signal.SIGKILL else 130)
    assert not out.exists()
    if stop == signal.SIGKILL:
        export(str(tiny_folder), out)  # cleans up behind the killed one
    assert [path.name for path in tmp_path.iterdir()] == (["b"] if stop == signal.SIGKILL else [])


def test_a_full_disk_is_one_line(tmp_path, tiny_folder, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantise_model, "quantize_checkpoint", full)
    assert run(["export", str(tiny_folder), "-o", str(tmp_path / "b")]) == 2
    assert "No space left on device" in message(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/nowhere/at/all"], "no such file or folder"),
        (["{tiny}", "--recipe", "int9"], "no recipe 'int9'"),
        (["{tiny}", "--recipe", "int4-g64-rtn"], "groups of 64 do not divide its 160 columns; groups of 32 fit"),
        (["{tiny}", "--context", "100000"], "made for 2 to 256 tokens"),
        (["{tiny}", "--context", "0"], "out of range"),
    ],
)
def test_bad_input_of_export_is_one_line(tmp_path, tiny_folder, capsys, arguments, expected):
    arguments = [argument.replace("{tiny}", str(tiny_folder)) for argument in arguments]
    assert run(["export", *arguments, "-o", str(tmp_path / "b")]) == 2
    assert expected in message(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(targets.TARGETS, "future", ("onnx_target", "ONNX", ("no_such_package",)))
    with pytest.raises(InputError, match=r"pip install 'pocketlm\[future\]'"):
        targets.get_target("future")


def spoil(bundle, **changes):
    path = bundle / "pocketlm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema_version": 99}, "schema version 99, this pocketlm reads up to 1; upgrade"),
        ({"files": {"../../etc/passwd": {"size_bytes": 1, "sha256": ""}}}, "leaves the bundle"),
        ({"files": {"/etc/passwd": {"size_bytes": 1, "sha256": ""}}}, "leaves the bundle"),
        ({"config": []}, "damaged"),
        ({"context": "many"}, "damaged"),
        ({"extra": 1}, "damaged"),
        ({"schema_version": 0}, "schema version 0"),
        ({"schema_version": True}, "schema version True"),
        ({"context": -1}, "damaged"),
        ({"context": 10**30}, "damaged"),
        ({"context": 5000}, "that the model cannot have"),
        ({"stop_tokens": []}, "damaged"),
        ({"stop_tokens": [99999]}, "that the model cannot have"),
        ({"files": {"a" * 5000: {"size_bytes": 1, "sha256": ""}}}, "has no target"),
    ],
)
def test_a_damaged_manifest_is_one_line(bundle, tmp_path, capsys, changes, expected):
    spoil(shutil.copytree(bundle, tmp_path / "b"), **changes)
    assert run(["verify", str(tmp_path / "b")]) == 2
    assert expected in message(capsys)


@pytest.mark.parametrize("name", ["pocketlm.json", "golden.json", "tokenizer_config.json", "generation_config.json"])
def test_nested_json_is_one_line(bundle, tmp_path, capsys, name):
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / name).write_text("[" * 100_000)
    assert run(["verify", str(folder), "--no-hashes"]) == 2
    message(capsys)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "chat_turns.json", "onnx/genai_config.json"]
)
def test_texts_are_read_even_if_hashes_are_not_asked_for(bundle, tmp_path, capsys, name):
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / name).write_text("garbage")
    assert run(["verify", str(folder), "--no-hashes"]) == 2
    message(capsys)


def test_chat_refuses_a_changed_template(bundle, tmp_path, capsys):
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / "chat_template.jinja").write_text("garbage")
    assert run(["chat", str(folder), "--prompt", "hello"]) == 2
    assert "chat_template.jinja is missing or was changed" in message(capsys)


def test_a_context_that_the_artifact_does_not_have(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    spoil(folder, context=100)
    certificate = verify(folder)
    assert certificate.targets["onnx"].failures == ("context: the artifact holds 192 tokens, pocketlm.json says 100",)


def test_a_junit_file_that_cannot_be_written_is_known_at_once(bundle, tmp_path, capsys):
    assert run(["verify", str(bundle), "--junit", str(tmp_path / "absent" / "a.xml")]) == 2
    assert "--junit" in message(capsys)


def test_a_full_output_is_one_line(bundle):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pocketlm", "inspect", str(bundle), "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("pocketlm: the output cannot be written: No space left")


def test_no_bundle_at_all(tmp_path, capsys):
    assert run(["verify", str(tmp_path)]) == 2
    assert "not a bundle" in message(capsys)
    (tmp_path / "pocketlm.json").write_text("{")
    assert run(["verify", str(tmp_path)]) == 2
    assert "damaged" in message(capsys)


def test_a_reference_of_another_model_is_refused(bundle, tmp_path):
    other = tiny_llama(tmp_path / "other", layers=3)
    with pytest.raises(InputError, match="not that of the bundle's source"):
        verify(bundle, model=str(other))


def test_inspect_tells_what_is_there(bundle, tiny_folder, capsys):
    for path, kind in ((bundle, "bundle"), (bundle / "onnx" / "model.onnx", "onnx"), (tiny_folder, "checkpoint")):
        assert run(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == kind
        assert run(["inspect", str(path)]) == 0
        assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("options", "recipe", "expected"),
    [
        ({"head_dim": 24}, "fp32", "needs heads of a multiple of 16 columns, these have 24"),
        (
            {"intermediate": 72},
            "int8",
            "down_proj.weight: ONNX Runtime's 8 bits need a multiple of 16 columns, it has 72",
        ),
    ],
)
def test_shapes_that_onnx_runtime_cannot_take(tmp_path, capsys, options, recipe, expected):
    folder = tiny_llama(tmp_path / "model", **options)
    assert run(["export", str(folder), "-o", str(tmp_path / "b"), "--recipe", recipe]) == 2
    assert expected in message(capsys)
