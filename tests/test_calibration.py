"""Calibrated quantisation: each solver against a plain one, and the walk that feeds them."""

import json
import os
import time

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export.calibrate import calibrate, calibration_steps, plan_calibration
from pocketlm.export.calibration_store import UNUSED_DAYS, CalibrationStore, forget_unused
from pocketlm.export.config import parse_config
from pocketlm.export.folds import Fold, find_folds
from pocketlm.export.to_torch import reference_logits
from pocketlm.export.tune import tune
from pocketlm.quantize.awq import column_factors
from pocketlm.quantize.calibrated import quantize_for_inputs
from pocketlm.quantize.gptq import damped, factorize, gptq_codes
from pocketlm.quantize.recipe import load_recipe, parse_recipe
from pocketlm.quantize.refine import output_error, refine
from pocketlm.quantize.rtn import best_scales, round_to_nearest
from pocketlm.quantize.store import CanonicalFile
from pocketlm.quantize.tensor import QuantizedTensor, same, to_scale_grid
from pocketlm.runtimes.calibration import cut_sequences, read_calibration_text
from pocketlm.runtimes.metrics import deviation
from pocketlm.runtimes.tokenizer import Tokenizer
from safetensors.numpy import load_file
from tiny import tiny_llama

LAYER = "model.layers.0."


def problem(seed, out=24, columns=128, tokens=400):
    """A weight, and the Hessian of inputs whose columns depend on each other and differ in size."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(columns, columns)) * 0.15 + np.eye(columns)
    inputs = generator.normal(size=(tokens, columns)) @ mixing * np.exp(generator.normal(size=columns))
    weight = generator.standard_t(4, (out, columns)) * 0.05
    return weight.astype(np.float32), (inputs.T @ inputs / tokens).astype(np.float32), inputs.astype(np.float32)


def loss(weight, hessian, quantized):
    error = quantized.dequantize().astype(np.float64) - weight
    return float(np.trace(error @ hessian.astype(np.float64) @ error.T))


def textbook_gptq(weight, hessian, scales):
    """Algorithm 1 of the paper, column by column, with the inverse Hessian's Cholesky factor, in float64."""
    out, columns = weight.shape
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)].astype(np.float64))).T
    rest, steps = weight[:, order].astype(np.float64), np.repeat(scales, columns // scales.shape[1], 1)[:, order]
    codes = np.empty((out, columns), np.int8)
    for column in range(columns):
        code = np.clip(np.rint(rest[:, column] / steps[:, column]), -8, 7)
        error = (rest[:, column] - code * steps[:, column]) / factor[column, column]
        rest[:, column:] -= error[:, None] * factor[column, column:]
        codes[:, order[column]] = code
    return codes


@pytest.mark.parametrize("seed", range(3))
def test_gptq_is_the_papers_algorithm(seed):
    weight, hessian, _ = problem(seed)
    safe = damped(hessian)
    scales = best_scales(weight, 4, 32)
    codes = gptq_codes(weight, factorize(safe), scales, 4)
    # float32 against float64: a value that lies between two codes may fall to either side
    assert (codes == textbook_gptq(weight, safe, scales)).mean() > 0.995


def test_each_stage_loses_less_than_the_one_before():
    weight, hessian, _ = problem(3)
    safe = damped(hessian)
    rounded = round_to_nearest(weight, 4, 32)
    scales = best_scales(weight, 4, 32, np.diagonal(safe))
    weighed = QuantizedTensor(textbook_rounding(weight, scales), scales, 4)
    solved = QuantizedTensor(gptq_codes(weight, factorize(safe), scales, 4), scales, 4)
    refined = refine(weight, safe, solved)
    losses = [loss(weight, safe, each) for each in (rounded, weighed, solved, refined)]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.6 * losses[0]


def textbook_rounding(weight, scales):
    steps = np.repeat(scales, weight.shape[1] // scales.shape[1], 1)
    return np.clip(np.rint(weight / steps), -8, 7).astype(np.int8)


def test_refinement_leaves_no_better_code_nearby():
    weight, hessian, _ = problem(4, out=3, columns=64)
    safe = damped(hessian)
    found = refine(weight, safe, round_to_nearest(weight, 4, 32), rounds=30)
    least = loss(weight, safe, found)
    for row in range(3):
        for column in range(64):
            for change in (-1, 1):
                codes = found.codes.copy()
                codes[row, column] = np.clip(codes[row, column] + change, -8, 7)
                assert loss(weight, safe, QuantizedTensor(codes, found.scales, 4)) >= least * (1 - 1e-5)
    assert np.array_equal(to_scale_grid(found.scales), found.scales)


def test_the_output_error_is_that_of_the_outputs():
    weight, hessian, inputs = problem(5)
    quantized = quantize_for_inputs(weight, hessian, 4, 32)
    change = inputs @ (quantized.dequantize() - weight).T
    assert output_error(weight, hessian, quantized) == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(inputs @ weight.T), rel=1e-3
    )


def test_solving_in_parts_changes_nothing():
    weight, hessian, _ = problem(6, out=2000, columns=32)
    whole = quantize_for_inputs(weight, hessian, 4, 32)
    assert same(whole.rows(768, 1536), quantize_for_inputs(weight[768:1536], hessian, 4, 32))


def test_columns_that_the_text_never_uses_are_harmless():
    weight, hessian, _ = problem(7)
    hessian[:, 40:] = hessian[40:] = 0
    assert np.isfinite(quantize_for_inputs(weight, hessian, 4, 32).dequantize()).all()
    zero = quantize_for_inputs(weight, np.zeros_like(hessian), 4, 32)
    assert loss(weight, np.eye(128), zero) <= loss(weight, np.eye(128), round_to_nearest(weight, 4, 32))


def test_factors_favour_the_columns_that_matter():
    weight, hessian, inputs = problem(8)
    factors = column_factors(weight, hessian, np.abs(inputs).mean(0), 32)
    used = np.diagonal(hessian)
    assert np.corrcoef(np.log(factors), np.log(used))[0, 1] > 0.9
    flat = column_factors(weight, np.eye(128, dtype=np.float32), np.ones(128, np.float32), 32)
    assert (flat == 1).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(configuration, source weights) of a tiny model with biases."""
    folder = tiny_llama(tmp_path_factory.mktemp("m") / "m", attention_bias=True, mlp_bias=True)
    return parse_config(json.loads((folder / "config.json").read_text())), load_source(folder)


def load_source(folder):
    """Weights in fp32, by name."""
    return load_file(folder / "model.safetensors")


def token_ids(sequences=16, length=96, seed=0):
    return np.random.default_rng(seed).integers(3, 512, (sequences, length))


def run(model, folder, recipe="int4", threads=2, step=lambda: None):
    config, weights = model
    store = CalibrationStore(folder)
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    calibrate(weights, config, chosen, token_ids(), store, step, threads)
    return store


def test_factors_are_folded_where_they_can_be_undone(model):
    config, _ = model
    folds = find_folds(config)
    assert folds[tuple(f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv")] == Fold(
        norm=f"{LAYER}input_layernorm.weight"
    )
    assert folds[f"{LAYER}mlp.down_proj.weight",] == Fold(projection=f"{LAYER}mlp.up_proj.weight")
    assert (f"{LAYER}self_attn.o_proj.weight",) not in folds


def test_folding_does_not_change_the_model(model, tmp_path):
    weights = model[1]
    exact = parse_recipe(
        {"overrides": {"*_proj.weight": {"kind": "fp32"}, "*down*": {"kind": "int4", "group": 32}}}, "x"
    )
    store = run(model, tmp_path, exact)
    up, down = f"{LAYER}mlp.up_proj.weight", f"{LAYER}mlp.down_proj.weight"
    factors = store.dense(f"{down}#factors")
    assert factors.std() > 0.01
    assert np.allclose(store[up] * factors[:, None], weights[up], rtol=1e-6)
    assert np.allclose(
        store.dense(up.replace("weight", "bias")) * factors, weights[up.replace("weight", "bias")], rtol=2e-3
    )
    whole = run(model, tmp_path / "int4")
    norm, query = f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.q_proj.weight"
    factors = whole.dense(f"{query}#factors")
    assert np.allclose(whole.dense(norm) * factors, weights[norm], rtol=1e-6)
    restored = whole[query].dequantize() / factors
    assert np.linalg.norm(restored - weights[query]) < 0.15 * np.linalg.norm(weights[query])


def test_calibrated_weights_are_closer_to_the_model_on_other_text(model, tmp_path):
    """By a fifth here: random weights make inputs whose columns are nearly alike, which leaves little to gain."""
    config, weights = model
    store = run(model, tmp_path)
    unseen = token_ids(seed=1)
    source = reference_logits(weights, config, unseen)
    rtn = {name: _rounded(name, tensor) for name, tensor in weights.items()}
    calibrated = dict(weights) | {name: store[name] for name in store}
    found = deviation(source, reference_logits(calibrated, config, unseen)).kl
    assert found < 0.9 * deviation(source, reference_logits(rtn, config, unseen)).kl


SMALL_HEAD = parse_recipe({"embedding": {"kind": "int4", "group": 32}}, "small head")


def small_head(folder, tied):
    """A tiny model whose head's inputs differ in size, and its calibration with a head of 4 bits."""
    made = tiny_llama(folder / "m", tied=tied)
    config, weights = parse_config(json.loads((made / "config.json").read_text())), load_source(made)
    weights["model.norm.weight"] *= np.geomspace(0.1, 4, 64, dtype=np.float32)
    return (config, weights), run((config, weights), folder / "store", SMALL_HEAD)


def test_a_head_of_four_bits_is_chosen_for_its_inputs(tmp_path):
    (config, weights), store = small_head(tmp_path, tied=False)
    assert "model.embed_tokens.weight" not in store
    unseen, head = token_ids(seed=1), weights["lm_head.weight"]
    source = reference_logits(weights, config, unseen)
    solved = weights | {name: store[name] for name in store}
    rtn, calibrated = (
        deviation(source, reference_logits(solved | {"lm_head.weight": found}, config, unseen)).kl
        for found in (round_to_nearest(head, 4, 32), store["lm_head.weight"])
    )
    assert calibrated < 0.8 * rtn


def test_a_calibration_goes_on_behind_a_tied_head(tmp_path):
    model, whole = small_head(tmp_path, tied=True)
    assert isinstance(whole["model.embed_tokens.weight"], QuantizedTensor)
    again = run(model, tmp_path / "again", SMALL_HEAD)
    lost = "model.layers.1.mlp.down_proj.weight"
    next(path for path in (tmp_path / "again").iterdir() if lost in CanonicalFile(path)).unlink()
    again = run(model, tmp_path / "again", SMALL_HEAD)
    assert equal(whole, again)


def _rounded(name, tensor):
    return round_to_nearest(tensor, 4, 32) if "_proj.weight" in name else tensor


def equal(left, right):
    return set(left) == set(right) and all(
        same(left[name], right[name])
        if isinstance(left[name], QuantizedTensor)
        else np.array_equal(left[name], right[name])
        for name in left
    )


def test_threads_do_not_matter(model, tmp_path):
    assert equal(run(model, tmp_path / "1", threads=1), run(model, tmp_path / "3", threads=3))


def test_interrupted_work_goes_on(model, tmp_path):
    whole = run(model, tmp_path / "whole")
    done = []

    def stop():
        done.append(1)
        if len(done) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "half", step=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half").iterdir()}
    assert len(kept) == 8
    resumed = run(model, tmp_path / "half")
    assert equal(whole, resumed)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half").iterdir()}
    assert len(after) == calibration_steps(plan_calibration(model[0], load_recipe("int4"))) + 1
    assert kept.items() <= after.items()


def test_a_damaged_file_of_the_cache_is_made_again(model, tmp_path):
    store = run(model, tmp_path)
    names = set(store)
    damaged = sorted(tmp_path.glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert set(CalibrationStore(tmp_path)) < names
    assert set(run(model, tmp_path)) == names


def test_what_nobody_uses_is_forgotten(tmp_path):
    now = time.time()
    for name, days in ("old", UNUSED_DAYS + 1), ("used", UNUSED_DAYS + 1), ("new", 1):
        store = CalibrationStore(tmp_path / name)
        store.save(("x",), {"x": np.ones(4, np.float16)}, {})
        os.utime(tmp_path / name, (now - days * 86400,) * 2)
    CalibrationStore(tmp_path / "used")
    (tmp_path / "somebody's file").touch()
    forget_unused(tmp_path, now)
    forget_unused(tmp_path / "nowhere", now)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "somebody's file", "used"]
    assert "x" in CalibrationStore(tmp_path / "used")


def test_a_tensor_that_cannot_be_quantised_is_named(model, tmp_path):
    config, weights = model
    broken = dict(weights) | {f"{LAYER}self_attn.o_proj.weight": np.full((64, 128), 1e9, np.float32)}
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.o_proj\.weight: a weight is too large"):
        calibrate(broken, config, load_recipe("int4"), token_ids(), CalibrationStore(tmp_path), lambda: None, 1)


def test_sequences_are_spread_over_the_text(tiny_folder):
    tokenizer = Tokenizer((tiny_folder / "tokenizer.json").read_text())
    text = read_calibration_text(None)
    ids = tokenizer.encode(text, special=False)
    found = cut_sequences(text, tokenizer, 256)
    assert found.shape == (48, 256)
    assert found[0].tolist() == ids[:256]
    assert found[-1].tolist() == ids[-256:]
    short = cut_sequences(text[:2000], tokenizer, 256)
    assert short.shape[0] * short.shape[1] <= len(tokenizer.encode(text[:2000], special=False))
    with pytest.raises(InputError, match="too short"):
        cut_sequences("Too short.", tokenizer, 256)


def test_the_texts_that_ship_do_not_overlap():
    from pocketlm.runtimes.golden import read_prose

    calibration, prose = read_calibration_text(None), read_prose()
    assert not any(prose[start : start + 60] in calibration for start in range(0, len(prose) - 60, 60))


def test_tuning_brings_the_model_closer_and_keeps_the_codes(model, tmp_path):
    """A little here: random weights have no structure that scales alone could restore."""
    config, weights = model
    store = run(model, tmp_path)
    calibrated = dict(weights) | {name: store[name] for name in store}
    tokens, unseen = token_ids(96, 48, seed=2), token_ids(seed=1)
    tuned = tune(weights, calibrated, config, tokens, lambda: None, threads=2, learning_rate=5e-3)
    source = reference_logits(weights, config, unseen)
    before = deviation(source, reference_logits(calibrated, config, unseen)).kl
    after = deviation(source, reference_logits(calibrated | tuned, config, unseen)).kl
    assert after < 0.98 * before
    for name, tensor in tuned.items():
        if isinstance(tensor, QuantizedTensor):
            assert np.array_equal(tensor.codes, store[name].codes)
            assert np.array_equal(to_scale_grid(tensor.scales), tensor.scales)
        else:
            assert tensor.dtype == np.float16
    again = tune(weights, calibrated, config, tokens, lambda: None, threads=1, learning_rate=5e-3)
    assert equal(tuned, again)


def test_gradients_of_scales_are_those_of_finite_differences(model, tmp_path):
    import torch
    from pocketlm.export.tune import _ScaledLinear

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (6, 64), generator=generator).to(torch.int8)
    scales = torch.rand((6, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn((1, 5, 64), generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: _ScaledLinear.apply(a, codes, b, torch.float64), (x, scales))
