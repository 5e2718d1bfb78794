"""Tiny models written as Core ML packages, and ways to damage a package, for the tests of the Core ML target."""

import json
import struct
from functools import cache

import numpy as np
from pocketlm.export.canonical import quantize_tensor
from pocketlm.export.config import parse_config
from pocketlm.quantize.recipe import load_recipe, parse_recipe
from pocketlm.runtimes.mil_package import import_coremltools
from scratch import scratch_folder
from tiny import tiny_llama

import_coremltools()

from pocketlm.export import apple  # noqa: E402
from pocketlm.export.to_coreml import write_coreml  # noqa: E402

CONTEXT = 96
CHUNK = 16
FUNCTIONS = apple.fixed_functions(CHUNK)
_ONLY_DOWN = {  # the one matrix whose rows 128 divides
    "linear": {"kind": "int8"},
    "overrides": {"*down_proj*": {"kind": "int4", "group": 128}},
}
RECIPES = {
    "int4": load_recipe("int4-rtn"),
    "int4-g64": load_recipe("int4-g64-rtn"),
    "int4-g128": parse_recipe(_ONLY_DOWN, "int4-g128"),
    "int8": load_recipe("int8"),
    "fp16": load_recipe("fp16"),
    "fp32": load_recipe("fp32"),
    "mixed": parse_recipe({"overrides": {"*k_proj*": {"kind": "int8"}, "*up_proj*": {"kind": "fp32"}}}, "mixed"),
}


@cache
def source(tied=True, biased=False):
    """A folder with a tiny model."""
    folder = scratch_folder()
    return tiny_llama(
        folder, tied=tied, attention_bias=biased, mlp_bias=biased, hidden=64, intermediate=128, head_dim=16, vocab=320
    )


@cache
def model(recipe, tied=True, biased=False):
    """(config, canonical weights) of a tiny model."""
    from safetensors.numpy import load_file

    folder = source(tied, biased)
    config = parse_config(json.loads((folder / "config.json").read_text()))
    tensors = load_file(folder / "model.safetensors")
    return config, {name: quantize_tensor(name, value, RECIPES[recipe])[0] for name, value in tensors.items()}


@cache
def package(recipe, tied=True, biased=False, functions=FUNCTIONS):
    """(folder with a package that nobody may change, config, weights)."""
    folder = scratch_folder()
    config, weights = model(recipe, tied, biased)
    write_coreml(folder, config, weights, CONTEXT, functions=functions)
    return folder, config, weights


def token_ids(count=40, vocab=320):
    """The same tokens each time, int64 (1, count)."""
    return np.random.default_rng(7).integers(3, vocab, (1, count))


def spec_path(folder):
    return folder / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"


def edit(folder, change):
    """Change a package's description in place: ``change`` is given the operations of each function by name."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(folder).read_bytes())
    functions = {}
    for name, function in spec.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        functions[name] = block.operations
    change(functions)
    spec_path(folder).write_bytes(spec.SerializeToString())


def operation(operations, output):
    """The operation that makes a value."""
    return next(op for op in operations if any(named.name == output for named in op.outputs))


def blob(folder, value, part):
    """The bytes of a quantised weight's codes ("data") or scales ("scale") in weight.bin, to be written to."""
    offsets = []
    edit(folder, lambda functions: offsets.append(_offset(functions["decode"], value, part)))
    path = folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    # Each blob has a header: marker, type, size in bytes, where the data begin (coremltools' StorageFormat.hpp).
    size, start = struct.unpack_from("<QQ", path.read_bytes(), offsets[0] + 8)
    return np.memmap(path, np.uint8, "r+", start, (size,))


def _offset(operations, value, part):
    return operation(operations, value).inputs[part].arguments[0].value.blobFileValue.offset
