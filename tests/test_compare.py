"""`pocketlm compare`: what got worse between two certificates."""

import copy
import json

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.compare import allowed_changes, compare, markdown_table

TARGET = {
    "passed": True,
    "weights_identical": True,
    "quantization": {"kl": 0.1, "top1": 0.9},
    "conversion": {"kl": 1e-11, "top1": 1.0},
    "runtime": {"kl": 0.02, "top1": 0.98},
    "total": {"kl": 0.12, "top1": 0.9, "perplexity_ratio": 1.1},
    "size_bytes": 100_000_000,
    "hardware": {"core": "cortex-a76", "peak_memory_bytes": 200_000_000},
    "seconds": 3.0,
}


@pytest.fixture
def pair(tmp_path):
    """Writes two outputs of verify, the second changed by a function."""

    def write(change):
        old = {"passed": True, "targets": {"onnx": TARGET}}
        new = copy.deepcopy(old)
        change(new["targets"])
        for name, content in (("old.json", old), ("new.json", new)):
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / "old.json", tmp_path / "new.json"

    return write


def setting(*path, value):
    def change(targets):
        place = targets["onnx"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "worse"),
    [
        (("total", "kl"), 0.14, "onnx: total.kl 0.12 -> 0.14"),
        (("total", "kl"), 0.13, None),
        (("total", "kl"), 0.05, None),
        (("total", "kl"), float("inf"), "onnx: total.kl 0.12 -> inf"),
        (("total", "top1"), 0.85, "onnx: total.top1 90.0 % -> 85.0 %"),
        (("total", "top1"), 0.95, None),
        (("total", "perplexity_ratio"), 1.15, "onnx: total.perplexity +10.0 % -> +15.0 %"),
        (("size_bytes",), 103_000_000, "onnx: size 100.0 MB -> 103.0 MB"),
        (("hardware", "peak_memory_bytes"), 230_000_000, "onnx: memory 200.0 MB -> 230.0 MB"),
        (("weights_identical",), False, "onnx: weights identical yes -> NO"),
        (("passed",), False, "onnx: passed yes -> NO"),
        (("runtime", "kl"), 0.05, None),
        (("quantization",), None, None),
        (("left_out",), ["total"], "onnx: verified in full yes -> NO"),
    ],
)
def test_a_change_is_judged_by_its_kind(pair, path, value, worse):
    found = compare(*pair(setting(*path, value=value)), allowed_changes(()))
    assert len(found.changes) >= 1
    assert found.worse == (() if worse is None else (worse,))


def test_equal_certificates_have_no_changes(pair):
    found = compare(*pair(setting("seconds", value=9.0)), allowed_changes(()))
    assert found.changes == ()
    assert markdown_table(found) == "### pocketlm: nothing changed\n"


def test_a_lost_target_is_worse_and_a_new_one_is_not(pair):
    old, new = pair(lambda targets: targets.update(executorch=targets.pop("onnx")))
    found = compare(old, new, allowed_changes(()))
    assert found.worse == ("onnx: target yes -> NO",)


def test_limits_are_the_users(pair, capsys):
    old, new = pair(setting("total", "kl", value=0.14))
    assert run(["compare", str(old), str(new)]) == 1
    assert "worse than" in capsys.readouterr().err
    assert run(["compare", str(old), str(new), "--worse", "total.kl=0.2"]) == 0
    capsys.readouterr()
    assert run(["compare", str(old), str(new), "--worse", "total.kl=0.01", "--json"]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change == {"target": "onnx", "name": "total.kl", "old": 0.12, "new": 0.14, "worse": True}
    for wrong in ("kl=1", "total.kl", "total.kl=-1", "total.kl=nan"):
        with pytest.raises(InputError, match=f"--worse {wrong}: give NAME=SHARE"):
            allowed_changes([wrong])


def test_markdown_is_a_table_that_names_what_is_worse(pair, capsys):
    old, new = pair(setting("size_bytes", value=110_000_000))
    assert run(["compare", str(old), str(new), "--markdown"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### pocketlm: 1 worse"
    assert lines[-1] == "| onnx | size | 100.0 MB | 110.0 MB | worse |"


def test_a_bundle_is_compared_with_itself(tmp_path, tiny_folder, capsys):
    from pocketlm.runtimes.build import export

    export(str(tiny_folder), tmp_path / "b", recipe="int8", context=96)
    assert run(["compare", str(tmp_path / "b"), str(tmp_path / "b/pocketlm.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"worse": False, "changes": []}


def test_what_holds_no_certificate_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"targets": {"onnx": {}}}')
    assert run(["compare", str(tmp_path / "x.json"), str(tmp_path / "nowhere")]) == 2
    assert "holds no certificate" in capsys.readouterr().err
