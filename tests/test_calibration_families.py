"""Calibration and training on every family: folding is exact, and what comes out is closer to the source."""

import numpy as np
import pytest
from pocketlm.export.calibrate import calibrate, plan_calibration
from pocketlm.export.calibration_store import CalibrationStore
from pocketlm.export.folded import FoldedWeights
from pocketlm.export.folds import find_folds
from pocketlm.export.sensitivity import group_sensitivities
from pocketlm.export.to_torch import reference_logits
from pocketlm.export.tune import tune
from pocketlm.quantize.recipe import Format, load_recipe
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.runtimes.metrics import deviation
from tiny_families import NAMES, canonical


def tokens(sequences, length=48, seed=0):
    return np.random.default_rng(seed).integers(3, 320, (sequences, length))


@pytest.mark.parametrize("name", NAMES)
def test_folding_any_factors_changes_nothing(name):
    config, weights = canonical(name)
    folds = find_folds(config)
    generator = np.random.default_rng(1)
    factors = {
        names: np.exp(generator.normal(size=weights[names[0]].shape[1]) / 2).astype(np.float32) for names in folds
    }
    folded = FoldedWeights(weights, folds, factors)
    ids = tokens(2)
    expected = reference_logits(weights, config, ids)
    assert np.abs(reference_logits(folded, config, ids) - expected).max() < 1e-3 * expected.std()
    assert len(folded.changed) >= 2 * len(folds)


# soft caps; a shared norm and biases; experts; no norm in front; scaled logits
@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "mixtral", "olmo2", "granite"])
def test_calibrated_and_trained_weights_are_closer_than_rounded_ones(name, tmp_path):
    config, weights = canonical(name)
    recipe, store, unseen = load_recipe("int4"), CalibrationStore(tmp_path), tokens(8, seed=9)
    calibrate(weights, config, recipe, tokens(24), store, lambda: None, 2)
    calibrated = weights | {key: store[key] for key in store}
    trained = calibrated | tune(weights, calibrated, config, tokens(48, seed=5), lambda: None, 2)
    linears = {key for names in plan_calibration(config, recipe).groups for key in names}
    rounded = weights | {key: round_to_nearest(weights[key], 4, 32) for key in linears}
    source = reference_logits(weights, config, unseen)
    kl = [deviation(source, reference_logits(each, config, unseen)).kl for each in (trained, calibrated, rounded)]
    assert kl[1] < kl[2]
    assert kl[0] < 1.02 * kl[1]


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt_neox"])
def test_sensitivities_are_those_of_the_finished_logits(name):
    config, weights = canonical(name)
    group = next(iter(find_folds(config)), None) or plan_calibration(config, load_recipe("int4")).groups[0]
    ids = tokens(1)
    found = group_sensitivities(weights, config, {group: Format("int4", 32)}, ids, lambda: None, 1)
    variant = weights | {key: round_to_nearest(weights[key], 4, 32) for key in group}
    expected = deviation(reference_logits(weights, config, ids), reference_logits(variant, config, ids)).kl
    assert found[group] == pytest.approx(expected, rel=2e-3)
