"""Core ML packages as a user meets them: exported, opened on Linux and on a Mac, looked at."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coreml_models import CHUNK, CONTEXT, FUNCTIONS, package, token_ids
from pocketlm.errors import InputError
from pocketlm.export import apple
from pocketlm.runtimes.bench import bench
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.coreml_session import PACKAGE, core_ml_session, open_coreml
from pocketlm.runtimes.coreml_target import COREML
from pocketlm.runtimes.inspect import inspect as look
from pocketlm.runtimes.mil_interpreter import Interpreter
from pocketlm.runtimes.mil_package import MilPackage
from pocketlm.runtimes.verify import verify

FLEXIBLE_ONLY = (apple.FLEXIBLE,)


@pytest.mark.parametrize(("recipe", "shapes"), [("int4-rtn", "fixed"), ("fp32", "fixed"), ("int8-rtn", "flexible")])
def test_an_export_passes_its_certificate(tmp_path, tiny_folder, recipe, shapes):
    report = export(str(tiny_folder), tmp_path / "b", to=("coreml",), recipe=recipe, context=192, coreml_shapes=shapes)
    found = report.certificate.targets["coreml"]
    assert found.passed
    assert found.conversion.kl <= 1e-9
    assert 0 < found.activation.kl < 1e-4
    assert "Apple's own kernels and numerics were not run" in found.evaluated_by or sys.platform == "darwin"
    kept = json.loads((tmp_path / "b/pocketlm.json").read_text())["certificate"]["targets"]["coreml"]
    assert any("unsupported-layers" in line for line in kept["lint"])
    assert look(str(tmp_path / "b"))["lint"] == {"coreml": kept["lint"]}
    assert verify(tmp_path / "b").passed
    written = MilPackage(tmp_path / "b/coreml" / PACKAGE)
    assert written.function_names == (("decode", "prefill") if shapes == "fixed" else ("main",))
    assert written.metadata["pocketlm.recipe"] == recipe
    assert written.metadata["pocketlm.context"] == "192"
    timed = bench(tmp_path / "b", prompt_tokens=3, new_tokens=2, runs=1)["targets"]["coreml"]
    assert timed["evaluated_by"] == found.evaluated_by  # so that nobody takes the interpreter's speed for a phone's


def test_the_command_line_offers_the_flexible_function(tmp_path, tiny_folder, capsys):
    arguments = [
        "export",
        str(tiny_folder),
        "-o",
        str(tmp_path / "b"),
        "--to",
        "coreml",
        "--context",
        "192",
        "--recipe",
        "int8-rtn",
    ]
    assert run([*arguments, "--coreml-shapes", "flexible"]) == 0
    assert MilPackage(tmp_path / "b/coreml" / PACKAGE).function_names == ("main",)
    assert run([*arguments, "--coreml-shapes", "round", "--overwrite"]) == 2
    assert "'round' is not one of" in capsys.readouterr().err
    with pytest.raises(InputError, match="coreml_shapes must be one of fixed, flexible"):
        export(str(tiny_folder), tmp_path / "c", to=("coreml",), recipe="int8-rtn", coreml_shapes="round")


def test_a_session_prefills_in_chunks_and_reaches_the_end_of_its_context():
    folder, config, weights = package("int4")
    ids = token_ids(CONTEXT)
    expected = COREML.emulate(weights, config, ids)[0]
    session = open_coreml(folder)
    assert (session.context, session.vocab_size, session.position) == (CONTEXT, 320, 0)
    scale = np.abs(expected).max()
    for prompt in (1, CHUNK, CHUNK + 3, CONTEXT - 1):  # the last one ends where no whole chunk fits
        session.reset()
        assert np.abs(session.run(ids[0, :prompt].tolist()) - expected[prompt - 1]).max() <= 0.01 * scale
        for position in range(prompt, min(prompt + 3, CONTEXT)):
            assert np.abs(session.run([int(ids[0, position])]) - expected[position]).max() <= 0.01 * scale
    assert session.position == CONTEXT
    with pytest.raises(InputError, match="97 tokens do not fit the context of 96"):
        session.run([3])
    session.reset()
    for tokens, message in (([], "no tokens"), ([320], "outside the vocabulary")):
        with pytest.raises(InputError, match=message):
            session.run(tokens)


def stand_in(loaded):
    """coremltools' MLModel as a Mac has it: the real signatures, and the interpreter in place of Core ML."""
    import coremltools

    real = coremltools.models.MLModel

    class Model:
        def __init__(self, *args, **options):
            given = inspect.signature(real.__init__).bind(self, *args, **options).arguments
            self.interpreter = Interpreter(Path(given["model"]), exact=False)
            self.function = given.get("function_name") or self.interpreter.package.function_names[0]
            loaded.append((given.get("function_name"), given["compute_units"].name))

        def make_state(self):
            return self.interpreter.new_state()

        def predict(self, *args, **options):
            given = inspect.signature(real.predict).bind(self, *args, **options).arguments
            assert type(given["data"]) is dict
            return self.interpreter.run(self.function, given["data"], given["state"])

    return Model


@pytest.mark.parametrize(
    ("recipe", "functions", "expected"),
    [
        ("int4", FUNCTIONS, [("decode", "CPU_AND_GPU"), ("prefill", "CPU_AND_GPU")]),
        ("int8", FLEXIBLE_ONLY, [(None, "ALL")]),
    ],
)
def test_on_a_mac_core_ml_is_asked_through_its_documented_interface(recipe, functions, expected):
    """What a Mac would do up to the call; Core ML itself cannot be run here."""
    folder, _, _ = package(recipe, functions=functions)
    loaded = []
    session, here = core_ml_session(folder, stand_in(loaded)), open_coreml(folder)
    assert loaded == expected
    ids = token_ids()[0].tolist()
    for part in (ids[:21], ids[21:22], ids[22:]):
        np.testing.assert_array_equal(session.run(part), here.run(part))


def test_a_package_that_core_ml_refuses(tmp_path):
    def refuse(*_, **__):
        raise Exception("State functionality is only supported on macOS 15+")

    with pytest.raises(InputError, match=r"Core ML cannot load it \(State functionality is only supported"):
        core_ml_session(package("int4")[0], refuse)


def test_inspect_reports_a_package():
    found = look(str(package("int4")[0] / PACKAGE))
    assert found["kind"] == "coreml"
    assert found["functions"]["prefill"] == "inputIds, position, logitsIndex"
    assert found["operators"]["decode"]["linear"] == 15
    assert any("opt-quantization-perf" in line for line in found["lint"])


def test_without_coremltools_the_extra_is_named():
    code = (
        "import sys; sys.modules['coremltools'] = None\n"
        "from pathlib import Path\n"
        "from pocketlm.runtimes.coreml_session import open_coreml\n"
        "open_coreml(Path('nowhere'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: coremltools is not installed; run: pip install 'pocketlm[coreml]'" in result.stderr
