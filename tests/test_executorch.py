"""The ExecuTorch target: what is written, what is read back, what runs."""

import subprocess
import sys

import numpy as np
import pytest
from executorch_models import CONTEXT, RECIPES, model, source, token_ids, write
from pocketlm.errors import InputError
from pocketlm.export.executorch_calls import CALL_TOKENS, WHOLE_CONTEXT
from pocketlm.export.inventory import take_inventory
from pocketlm.export.to_executorch import write_executorch
from pocketlm.quantize.tensor import QuantizedTensor, same
from pocketlm.runtimes.pte_reader import read_back
from pocketlm.runtimes.pte_report import inspect_pte, remarks
from pocketlm.runtimes.target import Target

pytest.importorskip("executorch")


def open_session(folder):
    from pocketlm.runtimes.executorch_session import ExecuTorchSession

    return ExecuTorchSession(folder)


def run_stepwise(session, ids, prefill):
    return np.stack([session.run(ids[:prefill]).copy(), *(session.run([token]).copy() for token in ids[prefill:])])


@pytest.mark.parametrize(("tied", "biased"), [(True, False), (False, True)])
def test_fp32_equals_transformers_in_prefill_and_decode(tmp_path, tied, biased):
    import torch
    from transformers import AutoModelForCausalLM

    ids = token_ids()
    oracle = AutoModelForCausalLM.from_pretrained(source(tied, biased), dtype=torch.float32)
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).logits[0].numpy()
    write(tmp_path, "fp32", tied=tied, biased=biased)
    actual = run_stepwise(open_session(tmp_path), ids, 7)
    assert np.abs(actual - expected[6:]).max() <= 1e-4


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fp32"])
def test_runs_what_the_emulation_computes(tmp_path, recipe):
    from pocketlm.runtimes.executorch_target import EXECUTORCH

    ids = token_ids()
    config, weights = write(tmp_path, recipe, biased=recipe == "mixed")
    expected = EXECUTORCH.emulate(weights, config, np.array([ids]))[0]
    actual = run_stepwise(open_session(tmp_path), ids, 7)
    difference = np.abs(actual - expected[6:]).max(-1) / np.abs(expected).max()
    assert np.median(difference) <= 1e-5  # a rounding that falls to the other side moves one token's logits


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tied", [True, False])
def test_codes_scales_and_constants_are_read_back_bit_for_bit(tmp_path, recipe, tied):
    config, weights = write(tmp_path, recipe, tied=tied, biased=not tied)
    found = read_back(tmp_path, config)
    assert set(found.weights) - {"lm_head.weight"} == set(weights) - {"lm_head.weight"}
    for name, expected in weights.items():
        actual = found.weights[name]
        if isinstance(expected, QuantizedTensor):
            assert same(expected, actual), name
        else:
            assert np.array_equal(np.asarray(expected, np.float32), actual), name
    for name, value in take_inventory(config).constants.items():
        assert np.float32(found.constants[name]) == np.float32(value), name


def test_a_tied_table_is_stored_once_where_both_kernels_read_the_same_bytes(tmp_path):
    for recipe, per_value in (("int8", 1), ("fp16", 2), ("fp32", 4)):
        config, _ = write(tmp_path, recipe)
        once = (tmp_path / "model.pte").stat().st_size
        write(tmp_path, recipe, tied=False)
        table = config.vocab_size * config.hidden_size * per_value
        assert 0.9 * table < (tmp_path / "model.pte").stat().st_size - once < 1.2 * table
        assert inspect_pte(tmp_path / "model.pte").twice_bytes == 0
    write(tmp_path, "int4 table")
    twice = 512 * 64 // 2 + 512 * 2 * 2
    assert inspect_pte(tmp_path / "model.pte").twice_bytes == twice
    (line,) = remarks(tmp_path / "model.pte")
    assert f"stored twice, {twice / 1e6:.1f} MB more" in line


def test_a_program_shares_the_memory_of_values_that_do_not_meet(tmp_path):
    config, _ = write(tmp_path, "int4")
    attention = config.layers[0].attention
    caches = 2 * config.num_hidden_layers * CONTEXT * attention.kv_width * 4
    values = CONTEXT * 4 * (6 * attention.query_width)
    memory = inspect_pte(tmp_path / "model.pte").memory
    assert memory["caches"] == caches
    assert 0 < memory["values"] < values
    assert memory["total"] == caches + memory["values"]


def test_everything_but_what_xnnpack_lacks_is_delegated(tmp_path):
    write(tmp_path, "int4")
    report = inspect_pte(tmp_path / "model.pte")
    assert set(report.backends) == {"XnnpackBackend"}
    assert set(report.kernels) == {
        "aten::_local_scalar_dense", "aten::sym_size", "executorch_prim::add", "aten::slice_copy",
        "quantized_decomposed::embedding_byte", "llama::update_cache", "llama::custom_sdpa",
    }  # fmt: skip
    assert report.weights["int8"] == 512 * 64
    assert report.weights["int4"] == 2 * 64 * (256 + 128 + 3 * 192) // 2
    assert report.constant_methods["get_max_context_len"] == [CONTEXT]


def test_a_long_prompt_goes_in_several_calls(tmp_path, monkeypatch):
    monkeypatch.setattr("pocketlm.runtimes.executorch_session.PREFILL_TOKENS", 5)
    ids = token_ids(13)
    write(tmp_path, "fp32")
    session = open_session(tmp_path)
    at_once = session.run(ids).copy()
    session.reset()
    assert session.position == 0
    one_by_one = run_stepwise(session, ids, 1)[-1]
    assert np.abs(at_once - one_by_one).max() <= 1e-5
    assert session.position == 13


def test_what_a_session_refuses(tmp_path):
    with pytest.raises(InputError, match="missing; export the model again with --to executorch"):
        open_session(tmp_path)
    write(tmp_path, "int4")
    session = open_session(tmp_path)
    with pytest.raises(InputError, match="65 tokens do not fit the context of 64"):
        session.run(token_ids(65))
    with pytest.raises(InputError, match="no tokens"):
        session.run([])
    with pytest.raises(InputError, match="outside the vocabulary"):
        session.run([512])


def test_a_long_context_plans_for_short_calls(tmp_path):
    config, weights = model("int4")
    found = {}
    for context in (WHOLE_CONTEXT, WHOLE_CONTEXT + 1, 4 * WHOLE_CONTEXT):
        write_executorch(tmp_path, config, weights, context)
        report = inspect_pte(tmp_path / "model.pte")
        found[context] = report.memory["values"], report.constant_methods["get_max_seq_len"]
    short, longer, longest = found.values()
    assert longer == longest == (longest[0], [CALL_TOKENS])
    assert short[1] == [WHOLE_CONTEXT]
    assert short[0] > 3.5 * longest[0]


@pytest.mark.parametrize(
    ("context", "sentences", "int8_cache"), [(CONTEXT, 1, False), (CONTEXT, 1, True), (WHOLE_CONTEXT + 52, 80, False)]
)
def test_runs_unchanged_in_the_runner_that_executorch_brings(tmp_path, context, sentences, int8_cache):
    """The same greedy text as our own session, in a process of its own: the runner loads kernels in its own way.

    The long prompt takes several calls.
    """
    from tokenizers import Tokenizer

    folder = source(tied=False)
    config, weights = model("fp32", tied=False)
    head = weights["lm_head.weight"].copy()
    head[3:259] = 0  # single bytes are no text, and the runner's callback takes nothing but text
    write_executorch(tmp_path, config, weights | {"lm_head.weight": head}, context, eos_ids=[2], int8_cache=int8_cache)
    prompt = " ".join(["It is a truth universally acknowledged"] * sentences)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session, ids = open_session(tmp_path), tokenizer.encode(prompt).ids
    assert sentences == 1 or len(ids) > CALL_TOKENS
    logits, generated = session.run(ids), []
    while len(generated) < 12 and 2 not in generated:
        generated.append(int(logits.argmax()))
        logits = session.run(generated[-1:])
    code = (
        "import sys\n"
        "from executorch.extension.llm.custom_ops import custom_ops\n"
        "import executorch.kernels.quantized\n"
        "from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner\n"
        "runner, parts = TextLLMRunner(sys.argv[1], sys.argv[2]), []\n"
        "config = GenerationConfig(echo=False, max_new_tokens=12, temperature=0.0)\n"
        "runner.generate(sys.argv[3], config, parts.append, None)\n"
        "open(sys.argv[4], 'w').write(''.join(parts))\n"
    )
    answer = tmp_path / "answer.txt"
    arguments = [str(tmp_path / "model.pte"), str(folder / "tokenizer.json"), prompt, str(answer)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert answer.read_text() == tokenizer.decode(generated, skip_special_tokens=False)


def test_every_operation_and_every_layer_is_exact():
    from pocketlm.runtimes.executorch_exactness import EXACT, one_layer_exactness

    for recipe in ("int4", "mixed"):
        found = one_layer_exactness(*model(recipe, biased=recipe == "mixed"), layers=[1])
        assert {"model.layers.1", "model.layers.1.self_attn", "model.layers.1.mlp.down_proj"} <= set(found)
        assert max(found.values()) <= EXACT, found


def test_the_whole_model_is_exact_with_fp32_activations(tmp_path):
    from pocketlm.export.to_torch import reference_logits
    from pocketlm.runtimes.executorch_target import EXECUTORCH

    assert isinstance(EXECUTORCH, Target)
    tokens = np.array([token_ids(9), token_ids(18)[9:]])
    for recipe in ("int4", "fp16"):
        config, weights = write(tmp_path, recipe)
        found = EXECUTORCH.exact_logits(tmp_path, config, tokens)
        assert np.abs(found - reference_logits(weights, config, tokens)).max() <= 1e-4


def test_formats_that_xnnpack_lacks_are_refused(tmp_path):
    config, weights = model("int4")
    name = "model.layers.0.mlp.up_proj.weight"
    codes = weights[name].codes
    for bits, group, message in ((4, 16, "groups that 32 divides"), (8, 32, "one scale for each row")):
        odd = QuantizedTensor(codes, np.ones((codes.shape[0], codes.shape[1] // group), np.float32), bits)
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            write_executorch(tmp_path, config, weights | {name: odd}, CONTEXT)
    assert not list(tmp_path.iterdir())
