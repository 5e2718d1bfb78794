"""Published configurations at their true size: every tensor's name and shape, without weights."""

import json
from math import prod
from pathlib import Path

import pytest
from pocketlm.export.config import ModelConfig, parse_config
from pocketlm.export.families import FAMILIES
from pocketlm.export.layouts import NormalisedCheckpoint, rename
from pocketlm.export.shapes import tensor_shapes

CONFIGS = Path(__file__).parent / "data" / "configs"
PARAMETERS = {  # as published, each parameter once
    "phi-3-mini-4k": 3_821_079_552,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
    "gemma-3-1b": 999_885_952,
    "smollm3-3b": 3_075_098_624,
    "mixtral-8x7b": 46_702_792_704,
}


class Shapes:
    """A checkpoint that knows names and shapes only."""

    def __init__(self, raw, shapes):
        layout = FAMILIES[raw["model_type"]].layout
        renamed = {rename(name, layout): shape for name, shape in shapes.items()}
        self.config, self._shapes = raw, {name: shape for name, shape in renamed.items() if name is not None}

    def names(self):
        return tuple(self._shapes)

    def shape(self, name):
        return self._shapes[name]


def published_shapes(raw):
    """Names and shapes as the model's file has them, from transformers' own model on no device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw["model_type"], **options))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return _experts_apart(shapes)


def _experts_apart(shapes):
    """transformers 5 holds experts in one tensor; files have each by itself, under Mistral's names."""
    apart = {}
    for name, shape in shapes.items():
        prefix, _, last = name.rpartition(".mlp.experts.")
        if prefix:
            count, rows, columns = shape
            parts = ("w1", "w3") if last == "gate_up_proj" else ("w2",)
            for expert in range(count):
                for part in parts:
                    stored = f"{prefix}.block_sparse_moe.experts.{expert}.{part}.weight"
                    apart[stored] = (rows // len(parts), columns)
        else:
            apart[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = shape
    return apart


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_tensor_of_the_published_model(name):
    raw = json.loads((CONFIGS / f"{name}.json").read_text())
    config = parse_config(raw, 2048)
    wanted = tensor_shapes(config)
    assert sum(prod(shape) for shape in wanted.values()) == PARAMETERS[name]
    stored = Shapes(raw, published_shapes(raw))
    checkpoint = NormalisedCheckpoint(stored, config, FAMILIES[raw["model_type"]].layout)
    assert {tensor: checkpoint.shape(tensor) for tensor in checkpoint.names()} == wanted


def features(config: ModelConfig):
    """What distinguishes layers: windows, rotation bases, layers without rotation."""
    attentions = [layer.attention for layer in config.layers]
    windows = {attention.window for attention in attentions}
    bases = {attention.rope.theta for attention in attentions if attention.rope is not None}
    return windows, bases, sum(attention.rope is None for attention in attentions)


@pytest.mark.parametrize(
    ("name", "context", "expected"),
    [
        ("phi-3-mini-4k", 2047, ({None}, {1e4}, 0)),
        ("phi-3-mini-4k", 4096, ({2047}, {1e4}, 0)),
        ("gemma-3-1b", 512, ({None}, {1e4, 1e6}, 0)),
        ("gemma-3-1b", 2048, ({None, 512}, {1e4, 1e6}, 0)),
        ("smollm3-3b", 2048, ({None}, {5e6}, 9)),
        ("qwen3-0.6b", 2048, ({None}, {1e6}, 0)),
    ],
)
def test_layers_differ_as_published(name, context, expected):
    config = parse_config(json.loads((CONFIGS / f"{name}.json").read_text()), context)
    assert features(config) == expected
    if name == "gemma-3-1b":
        assert [i for i, layer in enumerate(config.layers) if layer.attention.rope.theta == 1e6] == [5, 11, 17, 23]


def test_the_long_configuration_of_phi3_changes_divisors_with_the_context():
    raw = json.loads((CONFIGS / "phi-3-mini-4k.json").read_text()) | {
        "full_attn_mod": 1,  # Phi-4-mini has these
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "sliding_window": 262144,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0 + i for i in range(48)]},
    }
    short, long = (parse_config(raw, context).layers[0].attention.rope for context in (4096, 4097))
    assert (short.divisors[0], long.divisors[47]) == (1.0, 49.0)
    assert short.magnitude == long.magnitude == pytest.approx((1 + 5 / 12) ** 0.5)  # ln 32 / ln 4096
