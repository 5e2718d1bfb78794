"""The real SmolLM2-135M through the whole pipeline, against transformers reading the same file."""

import json

import numpy as np
import pytest
import torch
from pocketlm.export.fetch import fetch
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.prompts import encode_prompts
from pocketlm.runtimes.tokenizer import load_tokenizer

pytestmark = pytest.mark.end_to_end

QUESTIONS = (
    "What is the capital of France?", "Name a fruit.", "Why is the sky blue?", "Tell me a joke.", "What is 2 + 2?",
    "Write one sentence about rain.", "Who wrote Hamlet?", "What is a verb?",
    "Translate cat to French.", "Say hello.",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return fetch("smollm2-135m")


@pytest.fixture(scope="module")
def oracle(model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exact(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("e2e") / "fp32"
    return export(str(model), folder, recipe="fp32", context=512)


def test_fp32_is_the_model(exact, oracle):
    certificate = exact.certificate.targets["onnx"]
    assert certificate.passed
    assert certificate.tensors_checked == 211
    assert certificate.conversion.max_abs_logit <= 2e-4
    assert certificate.conversion.top1 == 1.0
    tokenizer = load_tokenizer(exact.bundle)
    session = OnnxSession(exact.bundle / "onnx")
    for question in QUESTIONS:
        prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", special=True)
        with torch.inference_mode():
            theirs = oracle.generate(
                torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=2
            )[0, len(prompt) :].tolist()
        assert greedy(session, prompt, 64) == theirs, question


def greedy(session, prompt, count):
    """Tokens that a session gives greedily."""
    session.reset()
    logits = session.run(prompt).copy()
    tokens = []
    while len(tokens) < count:
        logits[2] = -np.inf  # as min_new_tokens keeps transformers from stopping
        tokens.append(int(logits.argmax()))
        logits = session.run(tokens[-1:]).copy()
    return tokens


def test_reference_logits_equal_transformers(exact, model, oracle):
    session = OnnxSession(exact.bundle / "onnx")
    tokens = encode_prompts(exact.bundle, load_tokenizer(exact.bundle))[0]
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0].numpy()
    found = np.stack([session.run([token]).copy() for token in tokens])
    assert np.abs(found - expected).max() <= 2e-4


def test_int4_exports_verifies_and_answers(model, tmp_path, capsys):
    report = export(str(model), tmp_path / "b", recipe="int4-rtn", context=512)
    onnx = report.certificate.targets["onnx"]
    assert onnx.weights_identical
    assert onnx.tensors_checked == 211
    assert onnx.conversion.kl <= 1e-6
    assert onnx.runtime.kl <= 2 * onnx.runtime.noise_floor_kl
    assert run(["chat", str(tmp_path / "b"), "--prompt", "What is the capital of France?", "--json"]) == 0
    assert "Paris" in json.loads(capsys.readouterr().out)["text"]
