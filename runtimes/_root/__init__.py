"""pocketlm: one set of quantised weights for ExecuTorch, ONNX and Core ML, and a certificate that proves it.

    from pocketlm import plan, export, verify, load

    print(plan("smollm2-135m").targets["onnx"].artifact_bytes)      # as `pocketlm plan`
    export("smollm2-135m", "smol", to=["onnx"], recipe="int4")     # as `pocketlm export`
    assert verify("smol").passed                                    # as `pocketlm verify`
    print(load("smol").answer("What is the capital of France?"))    # as `pocketlm chat`

The functions take the parameters of the commands; nothing heavy is imported before one is called.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import export as _export_package
from ._version import __version__

if TYPE_CHECKING:
    from inspect import Signature

    from .runtimes.build import export as export
    from .runtimes.load import load as load
    from .runtimes.plan import plan as plan
    from .runtimes.verify import verify as verify

__all__ = ["__version__", "export", "load", "plan", "verify"]


class _ExportPackage(ModuleType):
    """`pocketlm.export` is a package of modules, and the function of that name as well."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .runtimes.build import export

        return export(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        import inspect

        from .runtimes.build import export

        return inspect.signature(export)


_export_package.__class__ = _ExportPackage


def __getattr__(name: str) -> Any:
    if name == "verify":
        from .runtimes.verify import verify

        return verify
    if name == "plan":
        from .runtimes.plan import plan

        return plan
    if name == "load":
        from .runtimes.load import load

        return load
    raise AttributeError(f"module 'pocketlm' has no attribute {name!r}")
