"""The real SmolLM2-135M as a .pte: its kernels, and ExecuTorch's own runner."""

import subprocess
import sys

import pytest
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.fetch import fetch
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_executorch import write_executorch
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.store import CanonicalFile, save_pieces
from tokenizers import Tokenizer

pytestmark = pytest.mark.end_to_end
pytest.importorskip("executorch")

END = 2
RUNNER = (
    "import sys\n"
    "from executorch.extension.llm.custom_ops import custom_ops\n"
    "import executorch.kernels.quantized\n"
    "from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner\n"
    "runner, parts = TextLLMRunner(sys.argv[1], sys.argv[2]), []\n"
    "config = GenerationConfig(echo=False, max_new_tokens=40, temperature=0.0)\n"
    "runner.generate(sys.argv[3], config, parts.append, None)\n"
    "open(sys.argv[4], 'w').write(''.join(parts))\n"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder with model.pte and tokenizer.json, config, canonical weights)."""
    folder = tmp_path_factory.mktemp("pte")
    checkpoint = open_checkpoint(str(fetch("smollm2-135m")))
    config = parse_config(checkpoint.config)
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_files()["tokenizer.json"])
    names = list(checkpoint.names())
    tensors = quantize_checkpoint(checkpoint, names, load_recipe("int4-rtn"), lambda error: None)
    save_pieces(folder / "canonical.safetensors", names, tensors)
    weights = CanonicalFile(folder / "canonical.safetensors")
    write_executorch(folder, config, weights, 1024, bos_id=1, eos_ids=[END])
    return folder, config, weights


def test_every_operation_of_some_real_layers_is_exact(exported):
    from pocketlm.runtimes.executorch_exactness import EXACT, one_layer_exactness

    found = one_layer_exactness(*exported[1:])
    assert {"model.embed_tokens", "model.norm", "silu gate", "model.layers.0", "model.layers.29"} <= set(found)
    assert max(found.values()) <= EXACT, found


def test_executorchs_runner_says_what_our_session_says_and_stops(exported):
    from pocketlm.runtimes.executorch_session import ExecuTorchSession

    folder = exported[0]
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session, generated = ExecuTorchSession(folder), []
    logits = session.run(tokenizer.encode(prompt).ids)
    while END not in generated and len(generated) < 40:
        generated.append(int(logits.argmax()))
        logits = session.run(generated[-1:])
    answer = folder / "answer.txt"
    arguments = [str(folder / "model.pte"), str(folder / "tokenizer.json"), prompt, str(answer)]
    done = subprocess.run([sys.executable, "-c", RUNNER, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert generated[-1] == END
    assert answer.read_text() == tokenizer.decode(generated, skip_special_tokens=False)
    assert "Paris" in answer.read_text()
