"""The canonical tensor: its grid, its codes, its file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.export.canonical import fit_groups
from pocketlm.quantize.recipe import RECIPES, Format, load_recipe, parse_recipe
from pocketlm.quantize.rtn import relative_error, round_to_nearest
from pocketlm.quantize.store import CanonicalFile, pack_int4, save_canonical, unpack_int4
from pocketlm.quantize.tensor import QuantizedTensor, same, to_bf16_grid, to_scale_grid


def random_weight(seed, out=8, columns=64, spread=0.05):
    return (np.random.default_rng(seed).standard_t(4, (out, columns)) * spread).astype(np.float32)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bf16_grid_is_torch_bfloat16(values):
    import torch

    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
    assert np.array_equal(to_bf16_grid(array).view(np.uint32), expected.view(np.uint32))


@given(st.lists(st.floats(min_value=0, max_value=2.0**60, width=32), min_size=1, max_size=50))
def test_scales_are_exact_in_half_precision(values):
    scales = to_scale_grid(np.array(values, np.float32))
    assert (scales > 0).all()
    assert np.array_equal(scales.astype(np.float16).astype(np.float32), scales)
    assert np.array_equal(to_bf16_grid(scales), scales)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(4, 32), (4, 64), (8, None)]), st.sampled_from([1e-6, 0.05, 3.0, 1e3]))
def test_rounding_stays_within_the_canonical_form(seed, form, spread):
    bits, group = form
    quantized = round_to_nearest(random_weight(seed, spread=spread), bits, group)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    assert quantized.codes.dtype == np.int8
    assert low <= quantized.codes.min() <= quantized.codes.max() <= high
    assert np.array_equal(to_scale_grid(quantized.scales), quantized.scales)
    assert quantized.group == (group or 64)


def test_each_code_is_the_nearest_for_its_scale():
    weight = random_weight(1)
    quantized = round_to_nearest(weight, 4, 32)
    step = np.repeat(quantized.scales, 32, axis=1)
    inside = np.abs(weight) < 7 * step
    assert (np.abs(quantized.dequantize() - weight)[inside] <= step[inside] * 0.5001).all()


def test_the_scale_search_beats_the_plain_scale():
    weight = random_weight(2, 64, 256)
    scale = to_scale_grid(np.abs(weight.reshape(64, -1, 32)).max(-1) / 7.5)
    codes = np.clip(np.rint(weight.reshape(64, -1, 32) / scale[..., None]), -8, 7).astype(np.int8).reshape(64, 256)
    plain = QuantizedTensor(codes, scale, 4)
    assert relative_error(weight, round_to_nearest(weight, 4, 32)) < 0.97 * relative_error(weight, plain)


def test_groups_of_zeros_and_weights_beyond_the_grid():
    zeros = round_to_nearest(np.zeros((2, 32), np.float32), 4, 32)
    assert (zeros.scales == 2.0**-14).all()
    assert not zeros.codes.any()
    assert relative_error(np.zeros((2, 32), np.float32), zeros) == 0
    with pytest.raises(InputError, match="too large to quantise"):
        round_to_nearest(np.full((1, 32), 1e9, np.float32), 4, 32)


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="group 48 does not divide 64 columns"):
        round_to_nearest(random_weight(0), 4, 48)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_int4_packing_is_lossless_and_low_nibble_first(rows, half, seed):
    codes = np.random.default_rng(seed).integers(-8, 8, (rows, 2 * half)).astype(np.int8)
    packed = pack_int4(codes)
    assert np.array_equal(unpack_int4(packed), codes)
    assert packed[0, 0] == (int(codes[0, 0]) + 8) + 16 * (int(codes[0, 1]) + 8)


def test_canonical_weights_survive_the_file(tmp_path):
    tensors = {
        "a.weight": round_to_nearest(random_weight(3), 4, 32),
        "b.weight": round_to_nearest(random_weight(4), 8, None),
        "norm.weight": np.arange(7, dtype=np.float16),
        "c.weight": random_weight(5),
    }
    save_canonical(tmp_path / "w.safetensors", tensors, {"recipe": "int4"})
    loaded = CanonicalFile(tmp_path / "w.safetensors")
    assert set(loaded) == set(tensors)
    assert loaded.metadata["recipe"] == "int4"
    assert same(loaded["a.weight"], tensors["a.weight"])
    assert same(loaded["b.weight"], tensors["b.weight"])
    assert np.array_equal(loaded["norm.weight"], tensors["norm.weight"])
    assert np.array_equal(loaded["c.weight"], tensors["c.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_foreign_or_broken_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match="not canonical weights"):
        CanonicalFile(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="not a readable file"):
        CanonicalFile(tmp_path / "y.safetensors")


def test_one_flipped_code_or_swapped_scales_are_not_the_same():
    tensor = round_to_nearest(random_weight(6), 4, 32)
    codes, scales = tensor.codes.copy(), tensor.scales.copy()
    codes[3, 5] ^= 1
    assert not same(tensor, QuantizedTensor(codes, tensor.scales, 4))
    scales[[0, 1]] = scales[[1, 0]]
    assert not same(tensor, QuantizedTensor(tensor.codes, scales, 4))


def test_the_last_matching_override_of_a_recipe_wins(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'base = "int4"\n[overrides]\n"model.layers.*" = { kind = "int4", group = 64 }\n'
        '"model.layers.0.*" = { kind = "int8" }\n[thresholds]\n"quantization.kl" = 0.5\n'
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.format_of("model.layers.0.mlp.up_proj.weight") == Format("int8")
    assert recipe.format_of("model.layers.1.mlp.up_proj.weight") == Format("int4", 64)
    assert recipe.format_of("model.embed_tokens.weight") == Format("int8")
    assert recipe.thresholds == {"quantization.kl": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bse": "int4"}, "unknown key 'bse'"),
        ({"base": "int3"}, "no built-in recipe 'int3'"),
        ({"base": ["int4"]}, r"no built-in recipe \['int4'\]"),
        ({"linear": {"kind": "int5"}}, "kind must be"),
        ({"linear": {"kind": "int4"}}, "needs a group"),
        ({"linear": {"kind": "int8", "group": 32}}, "only int4 has groups"),
        ({"linear": {"kind": "int4", "group": 48}}, "only int4 has groups"),
        ({"linear": {"kind": "int4", "group": 32.0}}, "only int4 has groups"),
        ({"linear": "int4"}, "a format is written"),
        ({"overrides": 3}, "must be tables"),
        ({"thresholds": {"quantization.kl": "low"}}, "must be a number"),
        ({"thresholds": {"quantization.kl": 10**400}}, "must be a number"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(content, "mine")


def test_a_recipe_that_may_takes_smaller_groups_where_its_own_do_not_divide():
    shapes = {"a.weight": (8, 160), "b.weight": (8, 128), "c.weight": (8, 40), "norm.weight": (96,)}
    fitted = fit_groups(load_recipe("int4-fast"), shapes)
    assert fitted.overrides == {"a.weight": Format("int4", 32)}
    assert fitted.format_of("b.weight") == Format("int4", 64)
    assert fitted.format_of("c.weight") == Format("int4", 64)  # nothing fits: it will be refused
    assert fit_groups(load_recipe("int4-g64"), shapes) == load_recipe("int4-g64")
    asked = parse_recipe({"base": "int4-fast", "overrides": {"a*": {"kind": "int4", "group": 128}}}, "x")
    assert fit_groups(asked, shapes).format_of("a.weight") == Format("int4", 128)


def test_unknown_recipe_names_what_there_is():
    with pytest.raises(InputError, match=r"no recipe 'int5'; there are int4, int4-g64"):
        load_recipe("int5")
    sizes = ("int4", "int4-g64", "int4-g128", "int4-fast", "int8")
    assert set(RECIPES) == {*sizes, *(f"{size}-rtn" for size in sizes), "int4-tuned", "int4-g64-tuned", "fp16", "fp32"}
