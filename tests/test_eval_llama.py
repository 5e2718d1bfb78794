"""An endpoint that is not ours: llama.cpp's own server with the same GGUF, on items of BIG-bench (Apache-2.0)."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.fetch import fetch
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_onnx import write_onnx
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.store import CanonicalFile, save_pieces
from pocketlm.runtimes.chat_template import load_chat_template
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.task_artifact import Artifact
from pocketlm.runtimes.task_endpoint import Endpoint, find_model
from pocketlm.runtimes.task_http import Connection, parse_address
from pocketlm.runtimes.task_meters import listener_peak_bytes
from pocketlm.runtimes.task_scoring import Method, ask
from pocketlm.runtimes.task_sources import open_task
from pocketlm.runtimes.tasks import ShortAnswer, limited
from pocketlm.runtimes.tokenizer import load_tokenizer

pytestmark = pytest.mark.end_to_end
METHOD = Method(likelihood=False, chat=True, max_new_tokens=12)


@contextmanager
def llama_server(model):
    """The address of llama.cpp's server, as a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(model)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as program:
        try:
            yield program.stdout.readline().strip()
        finally:
            program.stdin.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The same model in 8 bits, written but not verified, which would take minutes."""
    folder = tmp_path_factory.mktemp("llama")
    checkpoint = open_checkpoint(str(fetch("smollm2-135m")))
    config = parse_config(checkpoint.config)
    names = list(checkpoint.names())
    tensors = quantize_checkpoint(checkpoint, names, load_recipe("int8-rtn"), lambda error: None)
    save_pieces(folder / "canonical.safetensors", names, tensors)
    write_onnx(folder, config, CanonicalFile(folder / "canonical.safetensors"), 1024)
    for name, content in checkpoint.tokenizer_files().items():
        (folder / name).write_bytes(content)
    return Artifact(OnnxSession(folder, 1), load_tokenizer(folder), load_chat_template(folder), frozenset((2,)))


def test_the_same_prompts_and_scoring_on_llama_cpps_server(artifact):
    task = limited(open_task("general_knowledge"), 6)
    questions = [*task.items, ShortAnswer("What is the capital of Italy?", ("Rome",))]
    with llama_server(fetch("smollm2-135m")) as address:
        connection = Connection(parse_address(address), None)
        endpoint = Endpoint(connection, find_model(connection), chat=True)
        assert endpoint.model.endswith(".gguf")
        assert not endpoint.scores_prompts()  # it takes echo without a word, and gives none
        pairs = [(ask(artifact, item, METHOD), ask(endpoint, item, METHOD)) for item in questions]
        peak = listener_peak_bytes(connection.address.port)
        connection.close()
    # Template and tokenizer are llama.cpp's own there: that it counts the same tokens shows the prompts are the same.
    assert [ours.spent.prompt_tokens for ours, _ in pairs] == [theirs.spent.prompt_tokens for _, theirs in pairs]
    assert all(0 < theirs.spent.new_tokens <= METHOD.max_new_tokens for _, theirs in pairs)
    # Both round activations to 8 bits, each in its own way: near ties may fall either way.
    assert sum(ours.answer == theirs.answer for ours, theirs in pairs) >= 5, pairs
    assert pairs[-1][1].right
    assert peak > 100 << 20
