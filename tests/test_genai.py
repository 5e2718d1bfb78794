"""onnxruntime-genai, Microsoft's own runner, loads the ONNX folder unchanged and says what our session says."""

import numpy as np
import pytest
from pocketlm.runtimes.build import export
from pocketlm.runtimes.onnx_session import OnnxSession


@pytest.fixture(scope="module", params=[("int4-rtn", "float"), ("fp32", "float"), ("int4-rtn", "int8")])
def folder(request, tmp_path_factory, tiny_folder):
    bundle = tmp_path_factory.mktemp("genai") / "b"
    recipe, cache = request.param
    export(str(tiny_folder), bundle, recipe=recipe, cache=cache, context=96)
    return bundle / "onnx"


def test_greedy_tokens_are_equal(folder):
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder))
    prompt = np.random.default_rng(0).integers(3, 512, 20).tolist()
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=80, min_length=80, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    theirs = []
    while not generator.is_done() and len(theirs) < 48:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    session = OnnxSession(folder)
    logits = session.run(prompt)
    ours = []
    while len(ours) < len(theirs):
        allowed = logits.copy()
        allowed[2] = -np.inf  # min_length keeps their runner from stopping
        ours.append(int(allowed.argmax()))
        logits = session.run(ours[-1:])
    assert len(theirs) == 48
    assert ours == theirs


def test_their_tokenizer_reads_our_files(folder):
    genai = pytest.importorskip("onnxruntime_genai")
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    text = "The capital of France is Paris, 42."
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text
