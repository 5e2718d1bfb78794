"""Sessions over a Core ML package: Core ML itself on macOS, elsewhere our interpreter with fp16 rounding.

The macOS half cannot be tried on the machines this project is developed on; it uses coremltools' documented API
(``MLModel(path, function_name=...)``, ``make_state``, ``predict(inputs, state)``) and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export import apple
from .mil_interpreter import Interpreter
from .mil_package import MilPackage, import_coremltools
from .session import check_tokens

PACKAGE = "model.mlpackage"

_FLEXIBLE_TOKENS = 256  # of a prompt at once: a flexible function gives the logits of all its tokens

# (function, inputs, state) -> outputs by name
Predict = Callable[[str, Mapping[str, NDArray[Any]], Any], Mapping[str, NDArray[Any]]]


def open_coreml(folder: Path, threads: int = 2) -> CoreMLSession:
    """The package as shipped: Core ML itself on macOS, otherwise the interpreter with fp16 rounding.

    ``threads`` is for neither to choose: Core ML decides itself, and numpy takes what its BLAS was built with.
    """
    if sys.platform == "darwin":
        return core_ml_session(folder, import_coremltools().models.MLModel)
    interpreter = Interpreter(folder / PACKAGE, exact=False)
    return CoreMLSession(interpreter.package, interpreter.run, interpreter.new_state)


def judged_by() -> str:
    """What evaluates Core ML packages here, in words that say what was not run."""
    tools = import_coremltools()
    if sys.platform == "darwin":
        import platform

        return f"Core ML of macOS {platform.mac_ver()[0]} through coremltools {tools.__version__}"
    return (
        f"pocketlm's interpreter of ML Programs, rounding to fp16 after each operation, on a package whose types "
        f"coremltools {tools.__version__} inferred too; Apple's own kernels and numerics were not run"
    )


def core_ml_session(folder: Path, load: Callable[..., Any]) -> CoreMLSession:
    """Core ML itself, on the compute units that the package asks for. ``load`` is coremltools' MLModel.

    A state that one function has made is used with all of them, as in apple/coremltools pull request 2686. Raises
    InputError if Core ML refuses the package: coremltools' errors have no class of their own.
    """
    units = import_coremltools().ComputeUnit
    package = MilPackage(folder / PACKAGE)
    without_engine = package.metadata.get("pocketlm.compute_units") == "cpuAndGPU"
    named = bool(package.spec.description.functions)  # a package of one function may have no names for it
    try:
        models = {
            name: load(
                str(package.path),
                compute_units=units.CPU_AND_GPU if without_engine else units.ALL,
                function_name=name if named else None,
            )
            for name in package.function_names
        }

        def predict(function: str, inputs: Mapping[str, NDArray[Any]], state: Any) -> Mapping[str, NDArray[Any]]:
            outputs: Mapping[str, NDArray[Any]] = models[function].predict(dict(inputs), state=state)
            return outputs

        return CoreMLSession(package, predict, models[package.function_names[0]].make_state)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{package.path}: Core ML cannot load it ({error}); states need macOS 15") from error


class CoreMLSession:
    """A conversation with a package: prompts in chunks of the prefill function, then token by token."""

    def __init__(self, package: MilPackage, predict: Predict, make_state: Callable[[], Any]) -> None:
        """Look at the package's functions; raises InputError for one that pocketlm has not written."""
        self._predict = predict
        self._make_state = make_state
        try:
            self._context = package.number("pocketlm.context")
            self._vocab_size = package.number("pocketlm.vocabulary")
            shapes = _input_shapes(package)
            self._chunk = shapes["prefill"][1] if "prefill" in shapes else 0
            self._slots = _cache_slots(package)
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise InputError(f"{package.path}: not a package that pocketlm wrote ({error} is missing)") from error
        self._fixed = "decode" in shapes
        self.reset()

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        return self._context

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def position(self) -> int:
        """Tokens in the cache now."""
        return self._position

    def reset(self) -> None:
        """Forget the conversation."""
        self._state = self._make_state()
        self._position = 0

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Session."""
        check_tokens(self, tokens)
        left = list(tokens)
        while True:
            taken, logits = self._step(left)
            self._position += taken
            left = left[taken:]
            if not left:
                return logits

    def _step(self, tokens: list[int]) -> tuple[int, NDArray[np.float32]]:
        """Run what fits into one call; how many tokens that was, and the logits behind the last of them."""
        if not self._fixed:
            taken = min(len(tokens), _FLEXIBLE_TOKENS)
            return taken, self._call("main", flexible_inputs(tokens[:taken], self._position))
        # Padding is written behind the tokens, where nobody looks before it is overwritten; but a chunk that would
        # reach over the end of the cache has no place to write to, so the last tokens of a context go one by one.
        if len(tokens) > 1 and self._chunk and self._position + self._chunk <= self._slots:
            taken = min(len(tokens), self._chunk)
            inputs = prefill_inputs(tokens[:taken], self._position, self._chunk, [taken - 1])
            return taken, self._call("prefill", inputs)
        return 1, self._call("decode", decode_inputs(tokens[0], self._position))

    def _call(self, function: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        logits = np.asarray(self._predict(function, inputs, self._state)[apple.LOGITS], np.float32)
        last: NDArray[np.float32] = logits[0, -1]
        return last


def decode_inputs(token: int, position: int) -> dict[str, NDArray[np.int32]]:
    """Inputs of ``decode``."""
    return {apple.TOKENS: np.array([[token]], np.int32), apple.POSITION: np.array([position], np.int32)}


def prefill_inputs(
    tokens: Sequence[int], position: int, chunk: int, wanted: Sequence[int]
) -> dict[str, NDArray[np.int32]]:
    """Inputs of ``prefill``: tokens padded with zeros to a whole chunk, and the row whose logits are wanted."""
    padded = np.zeros((1, chunk), np.int32)
    padded[0, : len(tokens)] = tokens
    return {
        apple.TOKENS: padded,
        apple.POSITION: np.array([position], np.int32),
        apple.LOGITS_INDEX: np.array(wanted, np.int32),
    }


def flexible_inputs(tokens: Sequence[int], position: int) -> dict[str, NDArray[Any]]:
    """Inputs of ``main``; of the mask only the width is looked at, which says how many tokens there are in all."""
    return {
        apple.TOKENS: np.array([tokens], np.int32),
        apple.CAUSAL_MASK: np.zeros((1, 1, 1, position + len(tokens)), np.float16),
    }


def _cache_slots(package: MilPackage) -> int:
    """Tokens for which the cache has room, as the package declares it."""
    description = package.spec.description
    states = description.functions[0].state if description.functions else description.state
    slots = next(state.type.stateType.arrayType.shape[2] for state in states if state.name == apple.KEY_CACHE)
    return int(slots)


def _input_shapes(package: MilPackage) -> dict[str, tuple[int, ...]]:
    """Function -> declared shape of its tokens."""
    description = package.spec.description
    described = {function.name: function.input for function in description.functions} or {"main": description.input}
    return {
        name: tuple(next(x.type.multiArrayType.shape for x in inputs if x.name == apple.TOKENS))
        for name, inputs in described.items()
    }
