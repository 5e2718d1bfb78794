"""Our reading of a package against coremltools' own, which unpacks everything; and packages that are not sound."""

import shutil

import numpy as np
import pytest
from coreml_models import FUNCTIONS, edit, operation, package
from pocketlm.errors import InputError
from pocketlm.export import apple
from pocketlm.quantize.tensor import QuantizedTensor
from pocketlm.runtimes.coreml_session import PACKAGE
from pocketlm.runtimes.mil_interpreter import Interpreter
from pocketlm.runtimes.mil_package import MilPackage
from pocketlm.runtimes.mil_types import check_types


def oracle(path):
    """The program as coremltools' loader has it: function -> operations."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(path))
    program = load(spec, spec.specificationVersion, file_weights_dir=str(MilPackage(path).weights_path.parent))
    return {name: list(function.operations) for name, function in program.functions.items()}


def names(value):
    return [part.name for part in value] if isinstance(value, (list, tuple)) else value.name


def dimensions(shape):
    return tuple(int(size) if isinstance(size, (int, np.integer)) else -1 for size in shape)


def kind(variable):
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(variable.dtype)


@pytest.mark.parametrize(
    ("recipe", "functions"),
    [
        ("int4", (*FUNCTIONS, apple.FLEXIBLE)),
        ("int8", FUNCTIONS),
        ("fp16", FUNCTIONS),
        ("fp32", (apple.FLEXIBLE,)),
        ("mixed", FUNCTIONS),
    ],
)
def test_operations_and_constants_are_those_that_coremltools_reads(recipe, functions):
    path = package(recipe, functions=functions)[0] / PACKAGE
    read = MilPackage(path)
    expected = oracle(path)
    assert set(read.function_names) == set(expected)
    for name, operations in expected.items():
        function = read.function(name)
        steps = [op for op in operations if op.op_type != "const" and not op.op_type.startswith("constexpr")]
        assert [step.kind for step in function.steps] == [op.op_type for op in steps]
        for step, op in zip(function.steps, steps, strict=True):
            assert step.name == op.name or step.kind == "coreml_update_state"  # whose name coremltools forgets
            assert step.inputs == {key: names(value) for key, value in op.inputs.items() if value is not None}
            assert step.outputs == tuple(output.name for output in op.outputs)
            assert step.types == tuple(kind(output) for output in op.outputs)
            assert step.shapes == tuple(dimensions(output.shape) for output in op.outputs)
        for op in operations:
            output = op.outputs[0]
            if op.op_type == "const" and output.name in function.constants:
                constant = function.constants[output.name]
                assert constant.kind == kind(output)
                assert np.array_equal(constant.value, output.val)
                assert np.asarray(constant.value).dtype == np.asarray(output.val).dtype
            elif op.op_type.startswith("constexpr"):
                value = function.constants[output.name].value
                assert isinstance(value, QuantizedTensor)
                assert np.array_equal(value.codes, op.data.val)
                assert np.array_equal(value.scales, op.scale.val.astype(np.float32))
                assert value.bits == (4 if op.data.val.dtype.metadata else 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_table_are_those_of_the_whole(bits):
    function = MilPackage(package(f"int{bits}")[0] / PACKAGE).function("decode")
    weights = [constant for constant in function.constants.values() if constant.group is not None]
    indices = np.array([3, 0, 3, 15])
    for constant in weights:
        whole, rows = constant.value, constant.rows(indices)
        assert np.array_equal(rows.codes, whole.codes[indices])
        assert np.array_equal(rows.scales, whole.scales[indices])
        assert rows.bits == whole.bits
    assert bits in {constant.value.bits for constant in weights}


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "coreml"
    shutil.copytree(package("int4")[0], folder)
    return folder


def test_an_operation_whose_type_is_not_what_it_says(damaged):
    """Our reader takes what is declared, coremltools' types must agree; running it notices too."""

    def change(functions):
        made = next(op for op in functions["decode"] if op.type == "linear")
        made.outputs[0].type.tensorType.dimensions[2].constant.size += 1

    edit(damaged, change)
    check_types(MilPackage(damaged / PACKAGE), "prefill")
    with pytest.raises(InputError, match="function decode cannot be read by coremltools"):
        check_types(MilPackage(damaged / PACKAGE), "decode")
    interpreter = Interpreter(damaged / PACKAGE, exact=True)
    inputs = {apple.TOKENS: np.array([[1]], np.int32), apple.POSITION: np.array([0], np.int32)}
    with pytest.raises(InputError, match=r"makes \(1, 1, 64\), and says \(1, 1, 65\)"):
        interpreter.run("decode", inputs, interpreter.new_state())


def test_a_value_that_is_taken_before_it_is_made(damaged):
    def change(functions):
        operations = functions["decode"]
        place = next(index for index, op in enumerate(operations) if op.type == "matmul")
        late = type(operations[0]).FromString(operations[place].SerializeToString())
        del operations[place]
        operations.append(late)

    edit(damaged, change)
    with pytest.raises(InputError, match="which nothing has made before"):
        MilPackage(damaged / PACKAGE).function("decode")


def test_a_value_that_is_made_twice(damaged):
    def change(functions):
        functions["decode"].append(type(functions["decode"][0]).FromString(functions["decode"][-1].SerializeToString()))

    edit(damaged, change)
    with pytest.raises(InputError, match="logits is made twice"):
        MilPackage(damaged / PACKAGE).function("decode")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blob: setattr(blob, "offset", blob.offset + 64), "weight.bin has no blob of 4096 int4"),
        (lambda blob: setattr(blob, "offset", 1 << 40), "weight.bin ends before the blob"),
    ],
)
def test_a_constant_that_is_not_where_it_should_be(damaged, change, message):
    value = "model_layers_0_self_attn_q_proj_weight"
    edit(damaged, lambda functions: change(
        operation(functions["decode"], value).inputs["data"].arguments[0].value.blobFileValue
    ))  # fmt: skip
    with pytest.raises(InputError, match=message):
        MilPackage(damaged / PACKAGE).function("decode")


def test_a_weight_of_another_shape_than_its_codes(damaged):
    """The same number of bytes, so that only the shapes can tell."""

    def change(functions):
        made = operation(functions["decode"], "model_layers_0_mlp_up_proj_weight")
        first, second = made.outputs[0].type.tensorType.dimensions
        first.constant.size, second.constant.size = second.constant.size, first.constant.size

    edit(damaged, change)
    with pytest.raises(InputError, match="is not quantised the way pocketlm does it"):
        MilPackage(damaged / PACKAGE).function("decode")


def test_a_weights_file_that_is_cut_off(damaged):
    package_ = MilPackage(damaged / PACKAGE)
    content = package_.weights_path.read_bytes()
    package_.weights_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"weight.bin ends"):
        package_.function("decode")
