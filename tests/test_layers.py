"""The rules that keep the house in order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "onnx", "onnxruntime", "coremltools", "transformers", "executorch", "gguf", "rich", "tokenizers"}
ALLOWED = {"quantize": {"quantize"}, "export": {"quantize", "export"}, "runtimes": {"quantize", "export", "runtimes"}}


def imported_folders(path):
    """The sibling folders that a module's relative imports reach."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield path.parent.name
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder):
    root_modules = {"errors", "_version"}
    for path in (ROOT / folder).glob("*.py"):
        reached = set(imported_folders(path)) - root_modules
        assert reached <= ALLOWED[folder], f"{path.name} imports {reached - ALLOWED[folder]}"


def test_importing_and_asking_for_help_need_no_heavy_package():
    code = (
        "import sys, pocketlm, pocketlm.quantize.rtn\n"
        "from pocketlm.runtimes.cli import run\n"
        "run(['--help'])\n"
        f"sys.exit(', '.join({HEAVY} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_module_has_outgrown_its_purpose():
    long = [
        path.name
        for folder in ALLOWED
        for path in (ROOT / folder).glob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > 420
    ]
    assert not long
