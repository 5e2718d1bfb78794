"""pocketlm: one set of quantised weights for ExecuTorch, ONNX and Core ML, and a certificate that proves it."""

from ._version import __version__

__all__ = ["__version__"]
