"""The Python API, and optimum's command line on top of it."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_folder):
    from pocketlm import export

    folder = tmp_path_factory.mktemp("api") / "bundle"
    export(str(tiny_folder), str(folder), recipe="int8-rtn", context=128)
    return folder


def test_export_verify_and_load(bundle):
    from pocketlm import load, verify

    assert verify(str(bundle)).passed
    model = load(bundle)
    answer = model.answer("What is the capital of France?", max_new_tokens=8)
    assert "".join(model.stream("What is the capital of France?", max_new_tokens=8)) == answer
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    assert model.answer(conversation, max_new_tokens=8) == answer
    assert model.answer("What is the capital of France?", system="Be brief.", max_new_tokens=8) != answer
    logits = model.session
    logits.reset()
    assert logits.run([3, 4]).shape == (512,)


def test_load_names_what_is_missing(bundle, tmp_path):
    from pocketlm import load
    from pocketlm.errors import InputError

    with pytest.raises(InputError, match="has no coreml, it holds onnx"):
        load(bundle, "coreml")
    with pytest.raises(InputError, match="not a bundle"):
        load(tmp_path)


def test_the_functions_take_the_commands_parameters():
    from pocketlm import export, plan, verify
    from pocketlm.runtimes.cli import export_command, plan_command, verify_command

    taken = set(inspect.signature(export).parameters)
    renamed = {"adapter": "adapters", "as_json": "progress", "bits": "budget", "size": "budget"}
    # A dry run is `plan`, which is a function of its own.
    assert {renamed.get(option.name, option.name) for option in export_command.params} - {"dry_run"} == taken
    planned = {"device": "devices"}
    options = {planned.get(option.name, option.name) for option in plan_command.params} - {"as_json"}
    assert options == set(inspect.signature(plan).parameters)
    renamed |= {"target": "targets", "reference": "model", "no_hashes": "hashes"}
    options = {renamed.get(option.name, option.name) for option in verify_command.params} - {"junit"}
    assert options == set(inspect.signature(verify).parameters)


def test_export_stays_a_package_too():
    """Whatever was imported first."""
    code = (
        "import pocketlm.export.config as c\nfrom pocketlm import export\nassert callable(export)\n"
        "import pocketlm.export.rope\nfrom pocketlm import export as again, __version__\n"
        "assert again is export and c.parse_config\n"
        "import sys\nassert not {'torch', 'onnxruntime', 'tokenizers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def run_optimum(*arguments):
    command = Path(sys.executable).parent / "optimum-cli"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(command), "export", "pocketlm", *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


def test_optimum_exports(tiny_folder, tmp_path):
    pytest.importorskip("optimum")
    done = run_optimum("-m", str(tiny_folder), "--recipe", "int8-rtn", "--context", "64", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "b" / "onnx" / "model.onnx").is_file()
    refused = run_optimum("--model", str(tiny_folder), "--trust-remote-code", str(tmp_path / "c"))
    assert (refused.returncode, (tmp_path / "c").exists()) == (2, False)
    assert "never runs code that comes with a model" in refused.stderr
