"""Every family on every target: the same numbers as the family's own model, and every number read back."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from family_table import README, START, with_table
from pocketlm.errors import InputError
from pocketlm.export.bundle import fingerprint
from pocketlm.export.config import ACTIVATIONS, parse_config
from pocketlm.export.families import FAMILIES, UNSUPPORTED
from pocketlm.export.to_torch import reference_logits
from pocketlm.runtimes.identity import check_identity
from pocketlm.runtimes.targets import get_target
from tiny_families import CONTEXT, NAMES, artifact, canonical, expected_logits, family_folder, token_ids

TARGETS = ("onnx", "executorch", "coreml")


def read_back_differences(name, target, recipe, config=None):
    own, weights = canonical(name, recipe)
    prints = {key: fingerprint(weight) for key, weight in weights.items()}
    found = get_target(target).read_back(artifact(name, target, recipe), config or own)
    return check_identity(found, prints, config or own).differences


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_equals_the_familys_own_model(name):
    config, weights = canonical(name)
    expected = expected_logits(name)
    assert expected.std() > 0.3
    logits = reference_logits(weights, config, np.array([token_ids()]))[0]
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_equals_the_familys_own_model_in_prefill_and_decode(name, target):
    config, _ = canonical(name)
    found = get_target(target).exact_logits(artifact(name, target), config, np.array([token_ids()]))[0]
    assert np.abs(found - expected_logits(name)).max() <= 1e-4
    assert read_back_differences(name, target, "fp32") == ()


@pytest.mark.parametrize("target", ["onnx", "executorch"])
@pytest.mark.parametrize("name", NAMES)
def test_the_file_as_shipped_runs_in_prefill_and_decode(name, target):
    """Core ML's session is the interpreter that the exact evaluation uses, with fp16 caches: see the next test."""
    session, ids = get_target(target).open_session(artifact(name, target), 1), token_ids()
    logits = [session.run(ids[:20]).copy(), *(session.run([token]).copy() for token in ids[20:])]
    assert np.abs(np.stack(logits) - expected_logits(name)[19:]).max() <= 1e-4


QUANTISED = ("gemma2", "gemma3", "phi4", "granite", "mixtral", "gpt2", "gpt_neox", "olmo2", "openelm")


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name in QUANTISED for target in ("onnx", "executorch")]
    + [(name, "coreml") for name in ("gemma3", "mixtral", "gpt2")],  # seconds each
)
def test_int4_is_read_back_bit_for_bit_and_runs_as_emulated(name, target):
    assert read_back_differences(name, target, "int4-rtn") == ()
    (config, weights), ids = canonical(name, "int4-rtn"), token_ids(24)
    chosen = get_target(target)
    emulated = (chosen.emulate or reference_logits)(weights, config, np.array([ids]))[0]
    session = chosen.open_session(artifact(name, target, "int4-rtn"), 1)
    logits = [session.run(ids[:12]).copy(), *(session.run([token]).copy() for token in ids[12:])]
    deviation = np.abs(np.stack(logits) - emulated[11:]).max(-1) / np.abs(emulated).max()
    # a rounding that falls to the other side moves one token's logits; fp16 rounds every value
    assert np.median(deviation) <= (5e-3 if target == "coreml" else 2e-2)
    exact = chosen.exact_logits(artifact(name, target, "int4-rtn"), config, np.array([ids]))[0]
    assert np.abs(exact - reference_logits(weights, config, np.array([ids]))[0]).max() <= 1e-4


def test_longrope_takes_the_short_divisors_for_a_short_context():
    config, weights = canonical("phi4", context=32)
    logits = reference_logits(weights, config, np.array([token_ids(24)]))[0]
    assert np.abs(logits - expected_logits("phi4", 24)).max() <= 1e-4
    assert np.abs(logits - expected_logits("phi4")[:24]).max() > 1e-3, "both sets are one: this test shows nothing"


def attention_change(**change):
    def apply(config):
        layers = [replace(layer, attention=replace(layer.attention, **change)) for layer in config.layers]
        return replace(config, layers=tuple(layers))

    return apply


def rope_change(**change):
    def apply(config):
        layers = [
            replace(layer, attention=replace(layer.attention, rope=replace(layer.attention.rope, **change)))
            for layer in config.layers
        ]
        return replace(config, layers=tuple(layers))

    return apply


def expert_change(**change):
    def apply(config):
        layers = [
            replace(layer, mlp=replace(layer.mlp, experts=replace(layer.mlp.experts, **change)))
            for layer in config.layers
        ]
        return replace(config, layers=tuple(layers))

    return apply


def qk_epsilon(config):
    norm = config.layers[0].attention.qk_norm
    return attention_change(qk_norm=replace(norm, epsilon=1e-4))(config)


def qk_per_head(config):
    return attention_change(qk_norm=replace(config.layers[0].attention.qk_norm, per_head=True))(config)


CHANGES = {
    "window": ("mistral", attention_change(window=7), "window"),
    "no window": ("mistral", attention_change(window=None), ""),
    "base": ("qwen3", rope_change(theta=5000.0), "rotary|differ|rotated"),
    "no rotation": ("qwen3", attention_change(rope=None), "rotary|Reshape|rotated|update_cache"),
    "divisors": ("phi3", rope_change(divisors=(1.0,) * 8), "rotary"),
    "magnitude": ("phi3", rope_change(magnitude=1.0), "rotary"),
    "layers swapped": (
        "gemma3",
        lambda config: replace(config, layers=config.layers[::-1][1:] + config.layers[:1]),
        "",
    ),
    "soft-cap": ("gemma2", attention_change(softcap=5.0), "softcap"),
    "logits soft-cap": ("gemma2", lambda config: replace(config, logits_softcap=5.0), "logits:softcap"),
    "embedding scale": ("granite", lambda config: replace(config, embedding_scale=2.0), "embedding:scale"),
    "residual scale": ("granite", lambda config: replace(config, residual_scale=0.5), "attention:scale"),
    "logits scale": ("granite", lambda config: replace(config, logits_scale=0.25), "logits:scale"),
    "attention scale": ("granite", attention_change(scale=0.25), "self_attn:scale"),
    "qk norm epsilon": ("qwen3", qk_epsilon, "q_norm.weight:epsilon"),
    "qk norm kind": ("olmo2", qk_per_head, ""),
    "layer norm epsilon": (
        "gpt2",
        lambda config: replace(config, norms=replace(config.norms, epsilon=1e-3)),
        "epsilon",
    ),
    "parallel": ("gpt_neox", lambda config: replace(config, parallel=False), ""),
    "active experts": ("mixtral", expert_change(active=1), "active experts"),
    "renormalise": ("mixtral", expert_change(renormalise=False), "renormalise"),
    "activation": (
        "gpt2",
        lambda c: replace(c, layers=tuple(replace(lay, mlp=replace(lay.mlp, activation="gelu")) for lay in c.layers)),
        "",
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_model_is_not_taken_for_this_one(change, target):
    """Reading a file with a configuration that differs in one feature names what differs, or the numbers do.

    The readers of ONNX and Core ML find operators by name: what they miss of the wiring, the conversion error sees.
    """
    name, apply, message = CHANGES[change]
    (config, weights), tokens = canonical(name), np.array([token_ids(24)])
    try:
        differences = read_back_differences(name, target, "fp32", apply(config))
    except InputError as error:
        differences = (str(error),)
    if (target, change) in (("onnx", "qk norm kind"), ("onnx", "parallel"), ("coreml", "parallel")):
        found = get_target(target).exact_logits(artifact(name, target), config, tokens)
        if change == "qk norm kind":
            norms = [key for key in weights if key.endswith(("q_norm.weight", "k_norm.weight"))]
            weights = weights | {key: weights[key][:16] for key in norms}
        assert np.abs(found - reference_logits(weights, apply(config), tokens)).max() > 1e-2
        return
    assert differences
    assert re.search(message, " ".join(differences)), differences


def test_every_family_has_a_tiny_model():
    tested = {canonical(name)[0].model_type for name in NAMES} | {"llama"}
    assert tested == set(FAMILIES)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "gemma3", "vision_config": {}}, "vision tower"),
        ({"model_type": "fancy_vl", "vision_config": {}}, "vision tower"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "fancy", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "mamba2"}, "state-space"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "fancy"}, "'fancy' is not supported; supported are: gemma2, "),
    ],
)
def test_what_is_not_supported_is_refused_by_name(raw, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_config(raw)
    assert "supported are: gemma2, gemma3_text, " in str(caught.value)
    assert set(UNSUPPORTED).isdisjoint(FAMILIES)


_LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2", {"hidden_act": "relu"}, "activation 'relu' is not supported; supported are: silu"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "is not supported; it must be False"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}}, "long_factor"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 of 4 experts cannot be active"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers must have an entry for each of 2 layers"),
        ("gemma3", {"layer_types": ["strided", "full_attention", "full_attention"]}, "layer_types must say"),
        ("openelm", {"num_query_heads": [2, 4]}, "num_attention_heads has 2 entries for 3 layers"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ("gpt_neox", {"attention_sinks": 4}, "keys that pocketlm does not know"),
        ("qwen2", {"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number"),
        ("phi3", {"rope_parameters": _LONGROPE | {"original_max_position_embeddings": 1}}, "must be more than 1"),
        ("phi3", {"rope_parameters": _LONGROPE | {"factor": "8"}}, "factor must be a positive number, it is '8'"),
        ("phi3", {"rope_parameters": _LONGROPE | {"long_factor": [True] * 8}}, "long_factor must be a positive number"),
        ("phi3", {"rope_parameters": _LONGROPE | {"partial_rotary_factor": 1e308}}, "cannot be rotated in pairs"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers must list numbers of layers, it is 1"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval must be a positive"),
        ("gemma3", {"layer_types": [["full_attention"]] * 3}, "layer_types must say"),
        ("qwen2 window", {"layer_types": None, "max_window_layers": "1"}, "max_window_layers must be a whole number"),
    ],
)
def test_configurations_that_cannot_be_computed(name, change, message):
    raw = json.loads((family_folder(name) / "config.json").read_text()) | change
    with pytest.raises(InputError, match=message):
        parse_config(raw, CONTEXT)
    assert set(ACTIVATIONS.values()) == {"silu", "gelu", "gelu_tanh"}


def test_the_readme_lists_the_families():
    text = README.read_text(encoding="utf-8")
    assert START in text
    assert with_table(text) == text, "run: python tests/family_table.py"


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("qwen2", "tie_word_embeddings", "false", "tie_word_embeddings must be true or false, it is 'false'"),
        ("qwen3_moe", "norm_topk_prob", 1, "norm_topk_prob must be true or false, it is 1"),
        ("gemma3", "attn_logit_softcapping", 2.0, "attn_logit_softcapping"),
    ],
)
def test_values_that_could_mean_two_things_are_refused(family, key, value, message):
    raw = json.loads((family_folder(family) / "config.json").read_text())
    parse_config(raw)
    with pytest.raises(InputError, match=message):
        parse_config(raw | {key: value})
