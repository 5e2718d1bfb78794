"""The functions of an ML Program, read from the protobuf message of the file and from nothing else (MIL.proto)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mil_constants import Constant, block_constant, dense_constant, tensor_type


@dataclass(frozen=True)
class Step:
    """One operation. An input is the name of a value, or a list of names.

    types   the type that the program declares for each output: fp16, fp32, int32, bool ...
    shapes  the shape of each output, -1 where it is flexible
    """

    kind: str
    name: str
    inputs: Mapping[str, str | list[str]]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MilFunction:
    """One function: its steps in order, and what they refer to.

    inputs  name -> shape, -1 where it is flexible
    states  name -> shape
    """

    name: str
    inputs: Mapping[str, tuple[int, ...]]
    states: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Constant]


def operations_of(function: Any) -> list[Any]:
    """The operations of a function's message; ValueError for what an ML Program of ours has not."""
    if function.opset not in function.block_specializations:
        raise ValueError(f"there is no block for {function.opset}")
    block = function.block_specializations[function.opset]
    if function.attributes or block.attributes or block.inputs:
        raise ValueError("it has attributes or a block with inputs, which pocketlm does not write")
    return list(block.operations)


def read_function(name: str, function: Any, weights: Path) -> MilFunction:
    """A function from its message; ``weights`` is weight.bin. Raises ValueError for what is not sound."""
    types = {named.name: tensor_type(named.type) for named in function.inputs}
    states = {named.name for named in function.inputs if named.type.WhichOneof("type") == "stateType"}
    reader = _Reader(weights, types)
    for operation in operations_of(function):
        reader.read(operation)
    outputs = tuple(function.block_specializations[function.opset].outputs)
    reader.check_known(name, outputs)
    return MilFunction(
        name=name,
        inputs={key: shape for key, (_, shape) in types.items() if key not in states},
        states={key: shape for key, (_, shape) in types.items() if key in states},
        outputs=outputs,
        steps=tuple(reader.steps),
        constants=reader.constants,
    )


class _Reader:
    """Reads operations in order: every value must have been made before it is taken, and only once."""

    def __init__(self, weights: Path, inputs: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.steps: list[Step] = []
        self.constants: dict[str, Constant] = {}
        self._weights = weights
        self._types = dict(inputs)
        self._folded: dict[str, Any] = {}  # constants that compressed ones may be made of
        self._last = ""

    def read(self, operation: Any) -> None:
        """Take the next operation."""
        outputs = tuple(output.name for output in operation.outputs)
        if operation.blocks:
            raise ValueError(f"operation {operation.type} has blocks, which pocketlm does not write")
        if twice := [name for name in outputs if name in self._types or name in self.constants]:
            raise ValueError(f"{twice[0]} is made twice")
        if operation.type == "const":
            (output,) = outputs
            self._folded[output] = operation.attributes["val"]
            self.constants[output] = dense_constant(operation.attributes["val"], self._weights)
        elif operation.type == "constexpr_blockwise_shift_scale":
            self._read_blocks(operation, *outputs)
        elif operation.type == "write_state":
            self._write_state(operation)
        elif operation.type == "read_state" and self._is_read_back(operation):
            self._update_state(operation, *outputs)
        else:
            self.steps.append(self._step(operation, operation.type, self._names(operation)))
        self._last = operation.type
        self._types |= {output.name: tensor_type(output.type) for output in operation.outputs}

    def check_known(self, what: str, names: tuple[str, ...]) -> None:
        """Raise ValueError unless all these values were made."""
        for name in names:
            if name not in self._types:
                raise ValueError(f"{what} takes {name}, which nothing has made before")

    def _read_blocks(self, operation: Any, output: str) -> None:
        parts = {key: argument.arguments for key, argument in operation.inputs.items()}
        if set(parts) != {"data", "scale"} or any(len(given) != 1 for given in parts.values()):
            raise ValueError(f"{output} is not quantised the way pocketlm does it")
        data, scale = (
            given.value if given.WhichOneof("binding") == "value" else self._folded[given.name]
            for given in (parts["data"][0], parts["scale"][0])
        )
        declared = operation.outputs[0].type
        self.constants[output] = block_constant(data, scale, declared, self._weights)

    def _names(self, operation: Any) -> dict[str, str | list[str]]:
        """Parameter -> name of what is given for it; numbers that stand in the operation itself get a name."""
        found: dict[str, str | list[str]] = {}
        for key, argument in operation.inputs.items():
            names = []
            for index, given in enumerate(argument.arguments):
                name = given.name
                if given.WhichOneof("binding") == "value":
                    name = f"{operation.outputs[0].name}:{key}:{index}"
                    self.constants[name] = dense_constant(given.value, self._weights)
                    self._types[name] = tensor_type(given.value.type)
                names.append(name)
            self.check_known(f"{operation.type} {operation.outputs[0].name}", tuple(names))
            found[key] = names if key == "values" or len(names) != 1 else names[0]
        return found

    def _step(self, operation: Any, kind: str, inputs: Mapping[str, str | list[str]]) -> Step:
        types = [tensor_type(output.type) for output in operation.outputs]
        return Step(
            kind=kind,
            name=_name(operation),
            inputs=inputs,
            outputs=tuple(output.name for output in operation.outputs),
            types=tuple(kind for kind, _ in types),
            shapes=tuple(shape for _, shape in types),
        )

    def _write_state(self, operation: Any) -> None:
        """MIL's coreml_update_state is two operations in the file, this and a read_state that may follow."""
        state, value = operation.inputs["input"].arguments[0].name, operation.inputs["data"].arguments[0].name
        self.check_known(_name(operation), (state, value))
        kind, shape = self._types[state]
        inputs = {"state": state, "value": value}
        self.steps.append(
            Step("coreml_update_state", _name(operation), inputs, (f"{value}:written",), (kind,), (shape,))
        )

    def _is_read_back(self, operation: Any) -> bool:
        written = self.steps[-1].inputs["state"] if self._last == "write_state" else None
        return bool(written == operation.inputs["input"].arguments[0].name)

    def _update_state(self, operation: Any, _: str) -> None:
        update = self.steps.pop()
        self.steps.append(self._step(operation, update.kind, update.inputs))


def _name(operation: Any) -> str:
    if "name" not in operation.attributes:
        return str(operation.outputs[0].name)
    return str(operation.attributes["name"].immediateValue.tensor.strings.values[0])
