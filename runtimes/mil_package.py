"""Reading a saved .mlpackage: its description, and its functions with the constants that weight.bin holds."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.store import Dense
from ..quantize.tensor import QuantizedTensor

_WEIGHTS_FILE = "@model_path/weights/weight.bin"

Key = tuple[int, ...]  # where a constant's parts begin in weight.bin: equal for functions that share it


def import_coremltools() -> Any:
    """The coremltools module; raises InputError if it is not installed.

    The first import remarks on every package that it knows in another version, and on the parts that only a Mac has;
    that is kept from the user.
    """
    loaded = sys.modules.get("coremltools")
    if loaded is not None:
        return loaded
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            import coremltools
    except ImportError as error:
        raise InputError("coremltools is not installed; run: pip install 'pocketlm[coreml]'") from error
    return coremltools


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
class Constant:
    """A constant of a program. Quantised ones are as canonical tensors are; numbers and text are as numpy has them."""

    value: QuantizedTensor | NDArray[Any] | str
    half: bool
    key: Key | None


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


class MilPackage:
    """A saved package. Functions are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the description; raises InputError if the package is missing or damaged."""
        self.path = path
        tools = import_coremltools()
        if not path.is_dir():
            raise InputError(f"{path} is missing; export the model again with --to coreml")
        for part in (path, *path.rglob("*")):  # a pipe would never end, and a link may lead anywhere
            if part.is_symlink() or not (part.is_dir() or part.is_file()):
                raise InputError(f"{part}: is no ordinary file; export the model again")
        try:
            _check_manifest(path / "Manifest.json")
            self.spec: Any = tools.utils.load_spec(str(path))
        except Exception as error:  # protobuf's and the package library's errors have no common class
            raise InputError(f"{path}: not a readable package ({_reason(error)}); export it again") from error
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise InputError(f"{path}: not an ML Program; export it again")
        self._functions: dict[str, MilFunction] = {}

    @property
    def function_names(self) -> tuple[str, ...]:
        """All entry points, the default first."""
        described = [function.name for function in self.spec.description.functions]
        return tuple(described or self.spec.mlProgram.functions)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the package says about itself."""
        return dict(self.spec.description.metadata.userDefined)

    def number(self, key: str) -> int:
        """A number of the metadata; raises InputError if it is none."""
        text = self.metadata.get(key, "")
        if not text.isdecimal():
            raise InputError(f"{self.path}: its metadata has no number {key}; export the model again")
        return int(text)

    @property
    def weights_path(self) -> Path:
        """The file that holds the constants."""
        return self.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"

    def function(self, name: str) -> MilFunction:
        """A function by name; raises InputError if it is not there or weight.bin is damaged."""
        if name not in self._functions:
            if name not in self.function_names:
                raise InputError(f"{self.path}: it has no function {name}, only {', '.join(self.function_names)}")
            try:
                self._functions[name] = self._read(name)
            except Exception as error:  # the loader raises whatever the first inconsistency leads to
                raise InputError(f"{self.path}: function {name} cannot be read ({_reason(error)})") from error
        return self._functions[name]

    def _read(self, name: str) -> MilFunction:
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = type(self.spec)()
        spec.CopyFrom(self.spec)
        for other in set(self.function_names) - {name}:  # so that only one function's weights are in memory
            del spec.mlProgram.functions[other]
        keys = _blob_keys(spec.mlProgram.functions[name])
        program = load(spec, spec.specificationVersion, file_weights_dir=str(self.weights_path.parent))
        known = {
            constant.key: constant
            for function in self._functions.values()
            for constant in function.constants.values()
            if constant.key is not None
        }
        return _convert(name, program.functions[name], keys, known)


def _check_manifest(path: Path) -> None:
    """Raise ValueError if the package's manifest leads out of the package."""
    for item in json.loads(path.read_text(encoding="utf-8"))["itemInfoEntries"].values():
        place = PurePosixPath(item["path"])
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"its manifest names {item['path']}, outside the package")


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _blob_keys(function: Any) -> dict[str, Key]:
    """Value name -> offsets of its parts in weight.bin."""
    (block,) = function.block_specializations.values()
    keys = {}
    for operation in block.operations:
        values = list(operation.attributes.values())
        for argument in operation.inputs.values():
            values += [part.value for part in argument.arguments if part.WhichOneof("binding") == "value"]
        blobs = [value.blobFileValue for value in values if value.WhichOneof("value") == "blobFileValue"]
        elsewhere = [blob.fileName for blob in blobs if blob.fileName != _WEIGHTS_FILE]
        if elsewhere:  # the loader looks at the last part of a path only, Core ML at all of it
            raise ValueError(f"a constant lies in {elsewhere[0]}")
        offsets = tuple(blob.offset for blob in blobs)
        if offsets:
            keys[operation.outputs[0].name] = tuple(sorted(offsets))
    return keys


def _convert(name: str, function: Any, keys: Mapping[str, Key], known: Mapping[Key, Constant]) -> MilFunction:
    constants: dict[str, Constant] = {}
    steps: list[Step] = []
    for operation in function.operations:
        output = operation.outputs[0]
        key = keys.get(output.name)
        if operation.op_type == "constexpr_blockwise_shift_scale":
            shared = known.get(key) if key else None
            constants[output.name] = shared or Constant(_quantized(operation), _type(output) == "fp16", key)
        elif operation.op_type == "const":
            if not all(user.op_type.startswith("constexpr_") for user in output.child_ops):
                shared = known.get(key) if key else None
                constants[output.name] = shared or Constant(_dense(output.val), _type(output) == "fp16", key)
        else:
            steps.append(_step(operation))
    inputs = {key: value for key, value in function.inputs.items() if not _is_state(value)}
    return MilFunction(
        name=name,
        inputs={key: _shape(value.shape) for key, value in inputs.items()},
        states={key: _shape(value.shape) for key, value in function.inputs.items() if key not in inputs},
        outputs=tuple(output.name for output in function.outputs),
        steps=tuple(steps),
        constants=constants,
    )


def _step(operation: Any) -> Step:
    def names(value: Any) -> str | list[str]:
        return [part.name for part in value] if isinstance(value, (list, tuple)) else str(value.name)

    return Step(
        kind=operation.op_type,
        name=operation.name,
        inputs={key: names(value) for key, value in operation.inputs.items() if value is not None},
        outputs=tuple(output.name for output in operation.outputs),
        types=tuple(_type(output) for output in operation.outputs),
        shapes=tuple(_shape(output.shape) for output in operation.outputs),
    )


def _quantized(operation: Any) -> QuantizedTensor | Dense:
    """Codes and scales; raises ValueError for what canonical tensors cannot be: an offset, blocks of rows."""
    codes, scales = operation.inputs["data"].val, operation.inputs["scale"].val
    if operation.inputs.get("offset") is not None or codes.ndim != 2 or scales.shape[0] != codes.shape[0]:
        raise ValueError(f"{operation.name} is not quantised the way pocketlm does it")
    narrow = codes.dtype.metadata is not None  # coremltools marks int4 in int8 arrays that way
    return QuantizedTensor(codes.view(np.dtype(np.int8)), scales.astype(np.float32), 4 if narrow else 8)


def _dense(value: Any) -> NDArray[Any] | str:
    return value if isinstance(value, str) else np.asarray(value)


def _is_state(variable: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_state(variable.sym_type))


def _type(variable: Any) -> str:
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(variable.dtype))


def _shape(dimensions: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) if isinstance(size, (int, np.integer)) else -1 for size in dimensions)
