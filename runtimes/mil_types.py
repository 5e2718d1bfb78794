"""A second reading of a package's functions, by coremltools: it infers all types again, which must be those declared.

Weights are left out of it: coremltools unpacks every constant that it reads. Of each large one it is given zeros of the
type that the description declares, which take no memory.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import InputError
from ..export.coreml_weights import stand_in
from .mil_constants import Blob, Blocks, Constant
from .mil_function import operations_of
from .mil_package import MilPackage, reason

_LARGE = 1 << 12  # numbers; of smaller constants coremltools reads the content, on which types may depend


def check_types(package: MilPackage, name: str) -> None:
    """Raise InputError if the operations of a function do not fit together, or make other types than it says."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.frontend.milproto import load
    from coremltools.converters.mil.mil import Function

    constants, message = package.function(name).constants, package.spec.mlProgram.functions[name]
    context = load.TranscriptionContext(str(package.weights_path.parent))
    try:
        inputs = _placeholders(context, message)
        with Function(inputs, opset_version=AvailableTarget(package.spec.specificationVersion)):
            for operation in operations_of(message):
                output = operation.outputs[0].name if operation.outputs else ""
                if output in constants and _is_large(constants[output]):
                    context.register_var_with_name(output, _empty(constants[output], output))
                else:
                    load._load_operation(context, operation)  # load() has it read all constants
    except Exception as error:  # coremltools raises whatever the first inconsistency leads to
        raise InputError(f"{package.path}: function {name} cannot be read by coremltools ({reason(error)})") from error


def _placeholders(context: Any, message: Any) -> dict[str, Any]:
    """A function's inputs and states."""
    from coremltools.converters.mil.frontend.milproto.helper import proto_to_types
    from coremltools.converters.mil.mil import Placeholder, types
    from coremltools.converters.mil.mil.program import StateTensorPlaceholder

    found = {}
    for named in message.inputs:
        kind = proto_to_types(named.type)
        state = types.is_state(kind)
        held = kind.wrapped_type() if state else kind
        make = StateTensorPlaceholder if state else Placeholder
        found[named.name] = make(held.get_shape(), dtype=held.get_primitive(), name=named.name)
        context.register_var_with_name(named.name, found[named.name].outputs[0])
    return found


def _is_large(constant: Constant) -> bool:
    return isinstance(constant.content, (Blob, Blocks)) and prod(constant.shape) >= _LARGE


def _empty(constant: Constant, name: str) -> Any:
    """A constant of the same type and shape in the function that coremltools is reading."""
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.types import np_int4_dtype

    content = constant.content
    if isinstance(content, Blocks):
        codes = stand_in(content.codes.shape, np_int4_dtype if content.codes.kind == "int4" else np.int8)
        scales = stand_in(content.scales.shape, np.float16 if constant.half else np.float32)
        return Builder.constexpr_blockwise_shift_scale(data=codes, scale=scales, name=name)
    assert isinstance(content, Blob)
    return Builder.const(val=stand_in(content.shape, content.dtype), name=name)
