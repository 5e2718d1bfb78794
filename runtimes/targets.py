"""The targets there are, by name. Each is imported when it is asked for, because its toolchain is heavy."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from ..errors import InputError
from .target import Target

# name -> (module here, its Target, packages it needs)
TARGETS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": ("onnx_target", "ONNX", ("onnx", "onnxruntime")),
    "executorch": ("executorch_target", "EXECUTORCH", ("executorch", "torch")),
    "coreml": ("coreml_target", "COREML", ("coremltools",)),
}


def get_target(name: str) -> Target:
    """The target with this name; raises InputError for an unknown name or a missing extra."""
    if name not in TARGETS:
        raise InputError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    module, record, packages = TARGETS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"target {name} needs {missing[0]}, which is not installed; run: pip install 'pocketlm[{name}]'"
        )
    target: Target = getattr(import_module(f"{__package__}.{module}"), record)
    return target


def check_reference() -> None:
    """Raise InputError if the fp32 reference cannot run: verification needs torch."""
    if find_spec("torch") is None:
        raise InputError("verification computes the reference with torch; run: pip install 'pocketlm[reference]'")
