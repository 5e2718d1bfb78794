"""Tiny models written as .pte files, for the tests of the ExecuTorch target."""

import json
from functools import cache

import numpy as np
from pocketlm.export.canonical import quantize_tensor
from pocketlm.export.config import parse_config
from pocketlm.export.to_executorch import write_executorch
from pocketlm.quantize.recipe import load_recipe, parse_recipe
from scratch import scratch_folder
from tiny import tiny_llama

CONTEXT = 64
RECIPES = {
    "int4": load_recipe("int4-rtn"),
    "int4-g64": load_recipe("int4-g64-rtn"),
    "int8": load_recipe("int8"),
    "fp16": load_recipe("fp16"),
    "fp32": load_recipe("fp32"),
    "int4 table": parse_recipe({"embedding": {"kind": "int4", "group": 32}}, "int4 table"),
    "mixed": parse_recipe({"overrides": {"*k_proj*": {"kind": "int8"}, "*up_proj*": {"kind": "fp32"}}}, "mixed"),
}


@cache
def source(tied=True, biased=False, layers=2):
    """A folder with a tiny model."""
    folder = scratch_folder()
    return tiny_llama(
        folder, tied=tied, attention_bias=biased, mlp_bias=biased, layers=layers, hidden=64, intermediate=192
    )


@cache
def model(recipe, tied=True, biased=False, layers=2):
    """(config, canonical weights) of a tiny model."""
    from safetensors.numpy import load_file

    folder = source(tied, biased, layers)
    config = parse_config(json.loads((folder / "config.json").read_text()))
    tensors = load_file(folder / "model.safetensors")
    return config, {name: quantize_tensor(name, value, RECIPES[recipe])[0] for name, value in tensors.items()}


def write(folder, recipe, **options):
    """Write the model's .pte into the folder; returns (config, weights)."""
    config, weights = model(recipe, **options)
    write_executorch(folder, config, weights, CONTEXT)
    return config, weights


def token_ids(count=12, vocab=512):
    """The same tokens each time."""
    return np.random.default_rng(7).integers(3, vocab, count).tolist()
