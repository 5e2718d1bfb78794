"""What the interpreter computes, against torch, ONNX Runtime and coremltools' own documentation."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from pocketlm.runtimes import mil_ops
from pocketlm.runtimes.mil_interpreter import to_fp16_grid
from pocketlm.runtimes.mil_ops import OPERATIONS

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def in_onnx(kind, inputs, outputs=1, **attributes):
    """One ONNX operator on arrays; None is an input left out."""
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    given = {f"i{i}": array for i, array in enumerate(inputs) if array is not None}
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(inputs)]
    results = [f"o{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(kind, names, results, **attributes)], "one",
        [helper.make_tensor_value_info(name, types[str(array.dtype)], array.shape) for name, array in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in results],
    )  # fmt: skip
    for value in graph.output:
        value.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)
    return found[0] if outputs == 1 else found


def test_every_operation_that_is_written_is_tested_here():
    from pathlib import Path

    text = Path(__file__).read_text()
    assert [name for name in OPERATIONS if f'"{name}"' not in text and f"mil_ops.{name}(" not in text] == []


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("real_div", "Div"), ("maximum", "Max"),
        ("greater", "Greater"), ("less_equal", "LessOrEqual"), ("equal", "Equal"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((4,), (2, 3, 4)), ((), (3,))])
def test_binary_operations_broadcast(name, oracle, shapes):
    x, y = (np.asarray(RNG.integers(-3, 4, shape), np.float32) for shape in shapes)
    y = y + np.float32(0.5) * (name == "real_div")
    assert np.array_equal(OPERATIONS[name](x, y), in_onnx(oracle, [x, y]))


@pytest.mark.parametrize(("name", "oracle"), [("logical_and", "And"), ("logical_not", "Not")])
def test_logic(name, oracle):
    x, y = RNG.integers(0, 2, (3, 1)).astype(bool), RNG.integers(0, 2, (1, 4)).astype(bool)
    inputs = [x, y] if name == "logical_and" else [x]
    assert np.array_equal(OPERATIONS[name](*inputs), in_onnx(oracle, inputs))


def test_elementwise_functions():
    x = np.concatenate([normal(50) * 8, np.float32([0, -0.0, -200, 200, 88.7, -88.7])])
    for name, oracle in (("abs", torch.abs), ("tanh", torch.tanh), ("silu", torch.nn.functional.silu)):
        np.testing.assert_allclose(OPERATIONS[name](x), oracle(torch.from_numpy(x)).numpy(), rtol=2e-6, atol=1e-7)
    positive = np.abs(x) + np.float32(1e-6)
    expected = torch.rsqrt(torch.from_numpy(positive) + 1e-5).numpy()
    np.testing.assert_allclose(mil_ops.rsqrt(positive, np.float32(1e-5)), expected, rtol=1e-6)
    assert mil_ops.rsqrt(np.float32([0.0]))[0] == pytest.approx(1e6)  # the documented default epsilon of 1e-12
    assert mil_ops.rsqrt(positive).dtype == np.float32


@pytest.mark.parametrize("axes", [[-1], [0], [1, -1], None])
@pytest.mark.parametrize("keep_dims", [True, False])
def test_reductions(axes, keep_dims):
    x = normal(2, 3, 5)
    axis = None if axes is None else tuple(axes)
    every = tuple(range(3)) if axis is None else axis
    mean = torch.from_numpy(x).mean(every, keepdim=keep_dims).numpy()
    largest = torch.from_numpy(x).amax(every, keepdim=keep_dims).numpy()
    np.testing.assert_allclose(mil_ops.reduce_mean(x, axes, keep_dims), mean, rtol=1e-5, atol=1e-7)
    assert np.array_equal(mil_ops.reduce_max(x, axes, keep_dims), largest)


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_softmax_with_masked_places(axis):
    x = normal(3, 4, 6) * 30
    x[0, 1, 2:] = -np.inf
    x[1, 0, 0] = 65504
    expected = torch.softmax(torch.from_numpy(x), axis).numpy()
    np.testing.assert_allclose(mil_ops.softmax(x, np.int32(axis)), expected, rtol=1e-5, atol=1e-7)


def test_gelu_in_both_forms():
    x = 3 * normal(4, 33)
    for mode, approximate in (("EXACT", "none"), ("TANH_APPROXIMATION", "tanh")):
        expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
        assert np.abs(mil_ops.gelu(x, mode) - expected).max() <= 1e-6


def test_routing_operations():
    """topk, reduce_sum and scatter_along_axis, as a mixture of experts uses them."""
    x = normal(1, 5, 8)
    values, chosen = mil_ops.topk(x, 3, axis=-1)
    expected = torch.from_numpy(x).topk(3, -1)
    assert np.array_equal(values, expected.values.numpy())
    assert np.array_equal(chosen, expected.indices.numpy())
    assert np.allclose(mil_ops.reduce_sum(values, [-1], True), expected.values.sum(-1, keepdim=True).numpy(), atol=1e-6)
    spread = mil_ops.scatter_along_axis(np.zeros_like(x), chosen, values, axis=2, mode="update")
    assert np.array_equal(spread, torch.zeros(1, 5, 8).scatter(-1, expected.indices, expected.values).numpy())


def test_linear_and_matmul():
    x, weight, bias = normal(2, 5, 7), normal(3, 7), normal(3)
    expected = torch.nn.functional.linear(*map(torch.from_numpy, (x, weight, bias))).numpy()
    np.testing.assert_allclose(mil_ops.linear(x, weight, bias), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mil_ops.linear(x, weight), expected - bias, rtol=1e-5, atol=1e-5)
    left, right = normal(2, 1, 4, 5), normal(3, 5, 6)
    expected = in_onnx("MatMul", [left, right])
    np.testing.assert_allclose(mil_ops.matmul(left, right), expected, rtol=1e-5, atol=1e-6)
    turned = mil_ops.matmul(left.swapaxes(-1, -2), right.swapaxes(-1, -2), np.bool_(True), np.bool_(True))
    np.testing.assert_allclose(turned, expected, rtol=1e-5, atol=1e-6)


def attend(query, key, value, mask, rounding=lambda x: x):
    """Attention as the programs write it, of single operations."""
    scaled = rounding(OPERATIONS["mul"](query, np.float32(query.shape[-1] ** -0.5)))
    scores = rounding(OPERATIONS["add"](rounding(mil_ops.matmul(scaled, key, transpose_y=np.bool_(True))), mask))
    return mil_ops.matmul(rounding(mil_ops.softmax(scores, np.int32(-1))), value)


@pytest.mark.parametrize("hidden", [-np.inf, -49152])
def test_attention_of_single_operations(hidden):
    """Against torch's fused one. The finite mask, which the programs add, comes to the same as -inf."""
    query, key, value = normal(1, 2, 4, 8), normal(1, 2, 6, 8), normal(1, 2, 6, 5)
    seen = RNG.random((1, 1, 4, 6)) < 0.6
    seen[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, value)), attn_mask=torch.from_numpy(seen)
    ).numpy()
    mask = np.where(seen, np.float32(0), np.float32(hidden))
    np.testing.assert_allclose(attend(query, key, value, mask), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attend(query, key, value, mask, to_fp16_grid), expected, atol=5e-3)


@pytest.mark.parametrize(("shape", "axis"), [((7, 3), 0), ((2, 7, 3), 1), ((2, 7), -1)])
def test_gather(shape, axis):
    x, indices = normal(*shape), RNG.integers(0, 7, (2, 2))
    actual = mil_ops.gather(x, indices, np.int32(axis), np.int32(0), np.bool_(False))
    assert np.array_equal(actual, in_onnx("Gather", [x, indices], axis=axis))
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match="outside"):
            mil_ops.gather(x, np.array([wrong]), axis)


def test_moving_values():
    x = normal(2, 3, 4)
    perm = np.int32([2, 0, 1])
    assert np.array_equal(mil_ops.transpose(x, perm), in_onnx("Transpose", [x], perm=perm.tolist()))
    assert np.array_equal(mil_ops.reshape(x, np.int32([4, -1])), in_onnx("Reshape", [x, np.int64([4, -1])]))
    reps = np.int32([1, 2, 3])
    assert np.array_equal(mil_ops.tile(x, reps), in_onnx("Tile", [x, reps.astype(np.int64)]))
    axes = np.int32([0, -2])
    wide = mil_ops.expand_dims(x, axes)
    assert wide.shape == (1, 2, 3, 1, 4)
    assert np.array_equal(wide, in_onnx("Unsqueeze", [x, axes.astype(np.int64)]))
    assert mil_ops.squeeze(wide, np.int32([-2])).shape == (1, 2, 3, 4)
    assert mil_ops.squeeze(wide).shape == (2, 3, 4)
    joined = mil_ops.concat([x, normal(2, 1, 4), x], np.int32(-2), np.bool_(False))
    assert joined.shape == (2, 7, 4)
    parts = mil_ops.split(joined, np.int32(1), split_sizes=np.int32([3, 1, 3]))
    expected = in_onnx("Split", [joined, np.int64([3, 1, 3])], 3, axis=1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, expected, strict=True))
    halves = mil_ops.split(x, np.int32(-1), num_splits=np.int32(2))
    assert np.array_equal(np.concatenate(halves, -1), x)
    assert np.array_equal(mil_ops.concat([np.int32([1]), np.int32(2)], 0), [1, 2])  # a scalar is a list of one
    assert np.array_equal(mil_ops.shape(x), [2, 3, 4])
    assert mil_ops.shape(x).dtype == np.int32
    assert np.array_equal(mil_ops.range_1d(np.int32(0), np.int32(7), np.int32(3)), [0, 3, 6])


def test_casts():
    x = np.float32([-1.7, -0.0, 0.3, 2.9])
    assert np.array_equal(mil_ops.cast(x, "int32"), torch.from_numpy(x).to(torch.int32).numpy())
    assert np.array_equal(mil_ops.cast(x, "bool"), [True, False, True, True])
    assert mil_ops.cast(np.array([True]), "fp16").dtype == np.float32  # the interpreter rounds, not the operation


@pytest.mark.parametrize(
    ("begin", "end", "stride"),
    [([0, 1, 0], [2, 3, 4], None), ([-1, -2, 1], [2, 3, -1], [1, 1, 2]), ([1, 2, 3], [-3, -4, 0], [-1, -1, -1])],
)
def test_slices(begin, end, stride):
    x = normal(2, 3, 4)
    steps = np.int64(stride or [1, 1, 1])
    expected = in_onnx("Slice", [x, np.int64(begin), np.int64(end), np.int64([0, 1, 2]), steps])
    given = {} if stride is None else {"stride": np.int32(stride)}
    assert np.array_equal(mil_ops.slice_by_index(x, np.int32(begin), np.int32(end), **given), expected)


def documented_slices(shape, begin, end, stride, begin_mask, end_mask, squeeze_mask):
    """coremltools' own resolution of the arguments, which it uses to fold constants."""
    from coremltools.converters.mil.mil.ops.defs._utils import solve_slice_by_index_slice

    return solve_slice_by_index_slice(shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)


@pytest.mark.parametrize("seed", range(20))
def test_slices_with_masks_equal_the_documented_ones(seed):
    rng = np.random.default_rng(seed)
    shape = (4, 5, 6)
    x = rng.standard_normal(shape).astype(np.float32)
    begin = np.array([rng.integers(0, size - 1) for size in shape])
    end = np.array([rng.integers(low + 1, size + 1) for low, size in zip(begin, shape, strict=True)])
    begin = np.where(rng.random(3) < 0.3, begin - np.array(shape), begin)  # negative: counted from the end
    begin_mask, end_mask, squeeze_mask = (rng.random(3) < 0.3 for _ in range(3))
    squeeze_mask &= begin >= 0
    begin_mask &= ~squeeze_mask
    options = {"begin_mask": begin_mask, "end_mask": end_mask, "squeeze_mask": squeeze_mask}
    index = documented_slices(shape, begin.tolist(), end.tolist(), [1, 1, 1], begin_mask, end_mask, squeeze_mask)
    expected = x[index]
    actual = mil_ops.slice_by_index(x, begin, end, **options)
    assert np.array_equal(actual.reshape(-1), expected.reshape(-1))
    assert actual.ndim == 3 - squeeze_mask.sum()
    update = rng.standard_normal(actual.shape).astype(np.float32)
    written = x.copy()
    written[index] = update.reshape(expected.shape)
    before = x.copy()
    assert np.array_equal(mil_ops.slice_update(x, update, begin, end, **options), written)
    assert np.array_equal(x, before)


def test_slice_update_wants_an_update_of_the_right_shape():
    with pytest.raises(ValueError, match=r"slice of shape \(2, 2\) cannot take \(1, 2\)"):
        mil_ops.slice_update(normal(4, 2), normal(1, 2), [0, 0], [2, 2])


@pytest.mark.parametrize(("bits", "columns", "group"), [(4, 7, 7), (4, 96, 32), (8, 33, 33), (4, 9, 3)])
def test_quantised_constants_are_read_from_the_file_exactly(tmp_path, bits, columns, group):
    """Rows of odd length too: nibbles are packed over the whole tensor, not row by row."""
    from pocketlm.runtimes.mil_package import import_coremltools

    import_coremltools()
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.types import np_int4_dtype
    from pocketlm.quantize.tensor import QuantizedTensor, same
    from pocketlm.runtimes.mil_interpreter import Interpreter

    low, high = (-8, 7) if bits == 4 else (-127, 127)
    codes = RNG.integers(low, high + 1, (5, columns)).astype(np.int8)
    scales = (RNG.random((5, columns // group)) + 0.5).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec((2, columns), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def program(x):
        data = codes.astype(np_int4_dtype) if bits == 4 else codes
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scales, name="weight")
        return mb.linear(x=x, weight=weight, name="y")

    model = ct.convert(program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
                       pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True)  # fmt: skip
    model.save(str(tmp_path / "model.mlpackage"))
    interpreter = Interpreter(tmp_path / "model.mlpackage", exact=True)
    found = interpreter.package.function("main").constants["weight"].value
    expected = QuantizedTensor(codes, scales.astype(np.float32), bits)
    assert same(found, expected)
    x = normal(2, columns)
    product = interpreter.run("main", {"x": x}, {})["y"]
    np.testing.assert_allclose(product, x @ expected.dequantize().T, rtol=1e-5, atol=1e-5)
    rounded = Interpreter(tmp_path / "model.mlpackage", exact=False).run("main", {"x": x}, {})["y"]
    weight = torch.from_numpy(expected.dequantize()).half().float()
    np.testing.assert_array_equal(rounded, to_fp16_grid(rounded))
    np.testing.assert_allclose(rounded, (torch.from_numpy(x) @ weight.T).half().float(), rtol=1e-3)


def test_rounding_to_fp16_is_ties_to_even_and_overflows_to_infinity():
    x = np.float32([1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, -70000, 2**-25, 3e-8])
    assert np.array_equal(to_fp16_grid(x), torch.from_numpy(x).half().float().numpy())
    assert np.isinf(to_fp16_grid(x)[3])


def test_parameters_that_are_not_implemented_are_refused():
    for call in (
        lambda: mil_ops.gather(normal(2), np.array([0]), 0, batch_dims=1),
        lambda: mil_ops.concat([normal(2)], 0, interleave=True),
        lambda: mil_ops.cast(normal(2), "int8"),
        lambda: mil_ops.reshape(normal(2), [0, 2]),
    ):
        with pytest.raises(NotImplementedError):
            call()
