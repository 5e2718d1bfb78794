"""Integers of a GGUF file are kept where they have a canonical form."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from pocketlm import export
from pocketlm.export.bundle import read_manifest
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.gguf_codes import stored_codes
from pocketlm.export.gguf_reader import GgufReader
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.tensor import to_bf16_grid
from tiny import tiny_gguf, tiny_llama

KINDS = gguf.GGMLQuantizationType


def on_the_grid(blocks, size):
    """The bytes of blocks with their float16 scales rounded to bfloat16."""
    parts = blocks.reshape(-1, size)
    scales = parts[:, :2].copy().view(np.float16).astype(np.float32)
    parts[:, :2] = to_bf16_grid(scales).astype(np.float16).view(np.uint8)
    return parts.reshape(blocks.shape)


def without_the_lowest(blocks):
    """Blocks of Q4_0 without the code -8, which cannot be turned around where the scale is negative."""
    codes = blocks.reshape(-1, 18)[:, 2:]
    codes[(codes & 15) == 0] |= 1
    codes[(codes >> 4) == 0] |= 16
    return blocks


@pytest.mark.parametrize("sign", [1, -1])
def test_q4_0_is_taken_as_it_is_where_its_scales_are_on_the_grid(sign):
    weight = np.random.default_rng(0).normal(size=(8, 96)).astype(np.float32)
    weight[0, :32] = 0
    raw = quantize(sign * weight, KINDS.Q4_0)
    assert stored_codes(raw, "Q4_0", weight.shape) is None, "scales of float16 are finer than the grid"
    raw = without_the_lowest(on_the_grid(raw, 18))
    found = stored_codes(raw, "Q4_0", weight.shape)
    assert (found.bits, found.group) == (4, 32)
    assert np.array_equal(found.dequantize(), dequantize(raw, KINDS.Q4_0))
    assert (found.scales > 0).all()


def test_q8_0_is_taken_as_it_is_where_a_row_has_one_scale():
    weight = np.random.default_rng(0).integers(-127, 128, (8, 64)).astype(np.float32) * np.float32(0.0078125)
    weight[:, ::32] = 127 * np.float32(0.0078125)
    raw = quantize(weight, KINDS.Q8_0)
    found = stored_codes(raw, "Q8_0", weight.shape)
    assert (found.bits, found.group) == (8, 64)
    assert np.array_equal(found.dequantize(), dequantize(raw, KINDS.Q8_0))
    weight[0, :32] /= 2
    assert stored_codes(quantize(weight, KINDS.Q8_0), "Q8_0", weight.shape) is None
    assert stored_codes(raw, "Q4_1", weight.shape) is None


def test_an_export_keeps_them_and_says_so(tmp_path):
    source = tiny_llama(tmp_path / "m", head_dim=16)
    path = tiny_gguf(tmp_path / "m.gguf", source, "Q4_0", token_embd__weight="Q8_0", output__weight="Q8_0")
    reader = GgufReader(path)
    data = np.memmap(path, np.uint8, "r+")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        info = reader._tensors[f"model.layers.0.{name}.weight"]
        blocks = data[info.offset : info.offset + info.size_bytes]
        blocks[:] = without_the_lowest(on_the_grid(np.array(blocks), 18))
    data.flush()
    reader = GgufReader(path)
    names, errors = list(reader.names()), {}
    recipe = load_recipe("int4-rtn")
    report = lambda error: errors.__setitem__(error.name, error.relative_error)  # noqa: E731
    weights = dict(quantize_checkpoint(reader, names, recipe, report))
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        name = f"model.layers.0.{name}.weight"
        assert errors[name] == 0
        assert np.array_equal(weights[name].dequantize(), reader.read(name))
    assert errors["model.layers.1.mlp.down_proj.weight"] > 0
    export(str(path), tmp_path / "b", recipe="int4-rtn", context=64)
    assert (
        "of 16 matrices quantised to Q4_0 or Q8_0 in the source 2 were kept, the others quantised again"
        in read_manifest(tmp_path / "b").notes
    )
