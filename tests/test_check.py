"""What check_tensors finds wrong between a checkpoint and the decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export.check import check_tensors, optional_shapes
from pocketlm.export.config import ModelConfig, parse_config
from pocketlm.export.config_values import number
from pocketlm.export.inventory import take_inventory
from pocketlm.export.safetensors_reader import SafetensorsReader
from pocketlm.export.shapes import tensor_shapes
from tiny import tiny_llama


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 0, -1, True, "1"])
def test_numbers_that_no_model_has(value):
    with pytest.raises(InputError, match="rms_norm_eps must be a positive number"):
        number({"rms_norm_eps": value}, "rms_norm_eps", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path)


def config_of(folder: Path) -> ModelConfig:
    return parse_config(json.loads((folder / "config.json").read_text()))


def refusal(folder: Path, config: ModelConfig | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check_tensors(SafetensorsReader(folder), config or config_of(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"attention_bias": True}, {"mlp_bias": True}])
def test_sound_models_pass(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = tiny_llama(tmp_path, **options)
    check_tensors(SafetensorsReader(folder), config_of(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_the_tensors_are_those_that_the_decoder_uses(tmp_path: Path, tied: bool) -> None:
    config = config_of(tiny_llama(tmp_path, tied=tied))
    inventory = take_inventory(config)
    assert set(tensor_shapes(config)) == set(inventory.weights)
    linears = {name for names in inventory.linears for name in names} - {config.head_name}
    assert set(optional_shapes(config)) == {name.removesuffix("weight") + "bias" for name in linears}


def test_missing_tensors_are_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    assert "tensors are missing: model.layers.1.mlp.down_proj.weight;" in refusal(folder)
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    assert "and 5 more" in refusal(folder)


def test_tensors_that_nobody_reads_are_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(32, "f")}))
    assert "nothing would read these tensors: model.layers.0.self_attn.q_norm.weight;" in refusal(folder)


def test_fewer_layers_than_tensors_are_for(folder: Path) -> None:
    message = refusal(folder, replace(config_of(folder), layers=config_of(folder).layers[:1]))
    assert "nothing would read these tensors: model.layers.1." in message
    many = replace(config_of(folder), layers=config_of(folder).layers * 500)
    assert "1000 layers cannot be made of 21 tensors" in refusal(folder, many)
    raw = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2**31 - 1}
    with pytest.raises(InputError, match="num_hidden_layers must be a positive whole number up to 1024"):
        parse_config(raw)


def test_wrong_shapes_are_given(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.k_proj.weight": np.ones((32, 64), "f")}))
    message = "tensor model.layers.0.self_attn.k_proj.weight must have the shape [64, 64], it has [32, 64]"
    assert message in refusal(folder)


def test_biases_must_agree_with_the_configuration(folder: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda tensors: tensors.update({bias: np.ones(128, "f")}))
    assert f"config.json says attention_bias = false, but the tensor {bias} is there" in refusal(folder)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 512, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "the tokenizer has ids up to 512, but model.embed_tokens.weight has only 512 rows" in refusal(folder)


@pytest.mark.parametrize("content", [{}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": "b"}}}, {"model": 1}])
def test_a_tokenizer_without_a_vocabulary(folder: Path, content: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "tokenizer.json has no vocabulary" in refusal(folder)


def test_a_bias_anywhere_that_the_configuration_denies(folder: Path) -> None:
    bias = "model.layers.1.mlp.down_proj.bias"
    rewrite(folder, lambda tensors: tensors.update({bias: np.ones(64, "f")}))
    assert f"config.json says mlp_bias = false, but the tensor {bias} is there" in refusal(folder)


def test_two_spellings_of_the_rope_scaling_must_agree(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"type": "linear", "factor": 4.0}
    with pytest.raises(InputError, match="rope_scaling and rope_parameters differ in rope_type"):
        parse_config(config)
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    parse_config(config)
