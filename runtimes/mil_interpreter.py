"""Evaluates the functions of a saved .mlpackage in numpy: an independent reading of what the file says.

It checks structure and arithmetic. It does not have Apple's kernels: what the Neural Engine, a GPU or BNNS makes of
the same operations differs from it by their own rounding, and only a device can show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.tensor import QuantizedTensor
from .mil_constants import Constant, Key
from .mil_function import MilFunction, Step
from .mil_ops import ELEMENTWISE, OPERATIONS, write_slice
from .mil_package import MilPackage

Array = NDArray[Any]
State = dict[str, Array]

_LARGEST = 1 << 30  # numbers in one value; logits of a chunk over the largest vocabulary are a hundredth of it
_LARGE = 1 << 16  # values; constants below are kept in float32 from the start


def to_fp16_grid(x: Array) -> Array:
    """Round to fp16, ties to even, overflow to infinity; kept as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = x.astype(np.float16).astype(np.float32)
    return result


class Interpreter:
    """Runs functions of one package.

    exact         all arithmetic in fp32, whatever types the program declares, and nothing is rounded; otherwise every
                  value that the program declares fp16 is rounded to fp16, each operation computing in fp32
    cached_bytes  memory for unpacked weights; what does not fit is unpacked again for every use
    """

    def __init__(self, path: Path, exact: bool, cached_bytes: int = 700 << 20) -> None:
        self.package = MilPackage(path)
        self.exact = exact
        self._room = cached_bytes
        self._unpacked: dict[Key, Array] = {}
        self._plans: dict[str, _Plan] = {}

    def new_state(self) -> State:
        """All states of the package, zero, as Core ML makes them; float32."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.package.function_names:
            shapes |= self.package.function(name).states
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def run(
        self,
        function: str,
        inputs: Mapping[str, Array],
        state: State,
        check_shapes: bool = True,
        wanted: Sequence[str] = (),
    ) -> dict[str, Array]:
        """Evaluate a function; ``state`` is changed. Outputs by name, float32, and the ``wanted`` values inside.

        Raises InputError for inputs of another shape than declared (unless told not to look), and for an operation
        that is not known.
        """
        plan = self._plan(function)
        plan.check_inputs(self.package.path, inputs, check_shapes)
        values: dict[str, Any] = {
            name: np.asarray(value, np.float32 if np.asarray(value).dtype.kind == "f" else np.int32)
            for name, value in inputs.items()
        }
        asked = {*plan.function.outputs, *wanted}
        found: dict[str, Array] = {}
        for position, step in enumerate(plan.function.steps):
            self._execute(plan, position, step, values, state)
            if check_shapes:
                check_made(self.package.path, step, values)
            found.update((name, values[name].copy()) for name in step.outputs if name in asked)
            for name in plan.last_used[position]:
                values.pop(name, None)
        return found

    def _plan(self, name: str) -> _Plan:
        if name not in self._plans:
            function = self.package.function(name)
            for step in function.steps:
                if step.kind not in OPERATIONS and step.kind not in _STATE_OPERATIONS:
                    raise InputError(
                        f"{self.package.path}: operation {step.kind} ({step.name}) is not one that pocketlm writes, "
                        "and its interpreter does not know it"
                    )
                if any(prod(shape) > _LARGEST for shape in step.shapes if -1 not in shape):
                    raise InputError(f"{self.package.path}: {step.name} makes more numbers than any model of a phone")
            self._plans[name] = _Plan(function)
        return self._plans[name]

    def _execute(self, plan: _Plan, position: int, step: Step, values: dict[str, Any], state: State) -> None:
        if step.kind == "read_state":
            values[step.outputs[0]] = state[str(step.inputs["input"])]
            return
        if step.kind == "coreml_update_state":
            name = str(step.inputs["state"])
            state[name] = self._value(plan, str(step.inputs["value"]), values)
            values[step.outputs[0]] = state[name]
            return
        if step.kind == "gather" and self._gather_rows(plan, step, values):
            return
        arguments = {key: self._argument(plan, given, values) for key, given in step.inputs.items()}
        if plan.may_write_in_place(position, values, state):
            write_slice(arguments.pop("x"), **arguments)
            values[step.outputs[0]] = values[str(step.inputs["x"])]
            return
        self._store(step, self._compute(step, arguments), values)

    def _compute(self, step: Step, arguments: dict[str, Any]) -> Any:
        operation = OPERATIONS[step.kind]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if step.kind in ELEMENTWISE:
                return operation(*(arguments[key] for key in ("x", "y") if key in arguments))
            return operation(**arguments)

    def _store(self, step: Step, results: Any, values: dict[str, Any]) -> None:
        for name, kind, result in zip(
            step.outputs, step.types, results if isinstance(results, list) else [results], strict=True
        ):
            moved = step.kind in _MOVES
            values[name] = to_fp16_grid(result) if kind == "fp16" and not self.exact and not moved else result

    def _argument(self, plan: _Plan, given: str | list[str], values: dict[str, Any]) -> Any:
        if isinstance(given, list):
            return [self._value(plan, name, values) for name in given]
        return self._value(plan, given, values)

    def _value(self, plan: _Plan, name: str, values: dict[str, Any]) -> Any:
        if name in values:
            return values[name]
        constant = plan.function.constants[name]
        return constant.content if isinstance(constant.content, str) else self._unpack(constant)

    def _unpack(self, constant: Constant) -> Array:
        """A constant as float32 (or as it is, if it holds no floats), from memory if it was unpacked before."""
        if constant.key in self._unpacked:
            return self._unpacked[constant.key]
        value = constant.value
        assert not isinstance(value, str)
        if not isinstance(value, QuantizedTensor) and value.dtype != np.float16:
            return value
        unpacked = self._dequantize(value, constant.half)
        if constant.key is not None and unpacked.nbytes <= self._room:
            self._room -= unpacked.nbytes
            self._unpacked[constant.key] = unpacked
        return unpacked

    def _dequantize(self, value: QuantizedTensor | Array, half: bool) -> Array:
        if not isinstance(value, QuantizedTensor):
            return np.asarray(value, np.float32)
        unpacked = value.dequantize()
        return to_fp16_grid(unpacked) if half and not self.exact else unpacked

    def _gather_rows(self, plan: _Plan, step: Step, values: dict[str, Any]) -> bool:
        """Rows of a large table: only those that are asked for are unpacked. False if this is another gather."""
        constant = plan.function.constants.get(str(step.inputs["x"]))
        axis = plan.function.constants.get(str(step.inputs.get("axis")))
        if constant is None or axis is None or not isinstance(axis.content, np.ndarray) or int(axis.content) != 0:
            return False
        if constant.group is None and prod(constant.shape) < _LARGE:
            return False
        indices = self._value(plan, str(step.inputs["indices"]), values)
        if indices.size and not 0 <= indices.min() <= indices.max() < constant.shape[0]:
            raise IndexError(f"{step.name}: an index lies outside 0 ... {constant.shape[0] - 1}")
        rows = self._dequantize(constant.rows(indices.reshape(-1)), constant.half)
        values[step.outputs[0]] = rows.reshape(*indices.shape, *constant.shape[1:])
        return True


_STATE_OPERATIONS = ("read_state", "coreml_update_state")

# Operations that only move values, which are rounded already.
_MOVES = frozenset(
    ("concat", "expand_dims", "gather", "reshape", "slice_by_index", "slice_update", "split", "squeeze", "tile",
     "transpose", "abs", "reduce_max", "maximum")
)  # fmt: skip


def check_made(path: Path, step: Step, values: Mapping[str, Any]) -> None:
    """Raise InputError unless an operation has made values of the shapes that the program declares."""
    for name, declared in zip(step.outputs, step.shapes, strict=True):
        made = np.shape(values[name])
        if not _fits(declared, made):
            raise InputError(f"{path}: {step.name} makes {made}, and says {declared}; export the model again")


def _fits(declared: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    return len(actual) == len(declared) and all(
        size in (-1, found) for size, found in zip(declared, actual, strict=True)
    )


class _Plan:
    """A function with what running it needs to know: when a value is used for the last time."""

    def __init__(self, function: MilFunction) -> None:
        self.function = function
        last: dict[str, int] = {}
        for position, step in enumerate(function.steps):
            for name in _names(step):
                last[name] = position
        kept = set(function.outputs)
        self.last_used: list[list[str]] = [[] for _ in function.steps]
        for name, position in last.items():
            if name not in kept:
                self.last_used[position].append(name)

    def check_inputs(self, path: Path, inputs: Mapping[str, Array], check_shapes: bool) -> None:
        """Raise InputError unless these are the function's inputs."""
        name = self.function.name
        if set(inputs) != set(self.function.inputs):
            raise InputError(f"{path}: {name} takes {', '.join(self.function.inputs)}, not {', '.join(inputs)}")
        for key, declared in self.function.inputs.items():
            given = np.asarray(inputs[key]).shape
            if check_shapes and not _fits(declared, given):
                raise InputError(f"{path}: {name} takes {key} of shape {declared}, not {given}")

    def may_write_in_place(self, position: int, values: Mapping[str, Any], state: State) -> bool:
        """Whether a slice_update can write into its state's own buffer: nothing could tell it from a copy.

        The very next step must put the result into that state, and no other value may look into the buffer.
        """
        step = self.function.steps[position]
        if step.kind != "slice_update" or position + 1 == len(self.function.steps):
            return False
        following = self.function.steps[position + 1]
        if following.kind != "coreml_update_state" or following.inputs["value"] != step.outputs[0]:
            return False
        source = str(step.inputs["x"])
        buffer = state[str(following.inputs["state"])]
        if values.get(source) is not buffer or source not in self.last_used[position]:
            return False
        return not any(
            name != source and (value is buffer or getattr(value, "base", None) is buffer)
            for name, value in values.items()
        )


def _names(step: Step) -> list[str]:
    found: list[str] = []
    for given in step.inputs.values():
        found += given if isinstance(given, list) else [given]
    return found
