"""Walking a function of an ML Program: from a value to what made it, and to what uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.tensor import QuantizedTensor
from .mil_constants import Constant
from .mil_function import MilFunction, Step


class Graph:
    """A function's operations, to be walked from a value to what made it and to what uses it."""

    def __init__(self, path: Path, function: MilFunction) -> None:
        self.path = path
        self.function = function
        self.producers = {output: step for step in function.steps for output in step.outputs}
        self._users: dict[str, list[Step]] = {}
        for step in function.steps:
            for given in step.inputs.values():
                for name in given if isinstance(given, list) else [given]:
                    self._users.setdefault(name, []).append(step)

    def fail(self, what: str) -> InputError:
        """An error that says where."""
        return InputError(f"{self.path}: in {self.function.name}, {what}; export the model again")

    def users(self, value: str, kind: str) -> list[Step]:
        """Operations of one kind that take a value."""
        return [step for step in self._users.get(value, []) if step.kind == kind]

    def user(self, value: str, kind: str, what: str) -> Step:
        """The one operation of that kind that takes a value."""
        found = self.users(value, kind)
        if len(found) != 1:
            raise self.fail(f"{what}: {len(found)} operations {kind} use {value} where there should be one")
        return found[0]

    def producer(self, step: Step, key: str, kind: str, what: str) -> Step:
        """The operation that makes an operation's input, which must be of that kind."""
        made = self.producers.get(str(step.inputs.get(key)))
        if made is None or made.kind != kind:
            raise self.fail(f"{what}: {step.name} does not take the result of {kind}")
        return made

    def constant(self, step: Step, key: str, what: str) -> NDArray[np.generic]:
        """An input that is a constant of numbers, or a cast of one."""
        name = str(step.inputs.get(key))
        made = self.producers.get(name)
        if made is not None and made.kind == "cast":
            name = str(made.inputs["x"])
        found = self.function.constants.get(name)
        value = None if found is None else found.value
        if value is None or isinstance(value, (QuantizedTensor, str)):
            raise self.fail(f"{what}: {key} of {step.name} is no constant")
        return value

    def tensor(self, value: str, what: str) -> Constant:
        """A weight by the name of its value."""
        found = self.function.constants.get(value)
        if found is None or isinstance(found.content, str):
            raise self.fail(f"{what} is missing")
        return found
