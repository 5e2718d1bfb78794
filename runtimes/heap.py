"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def release_freed_memory() -> None:
    """Have glibc give back to the system what was freed; elsewhere this does nothing.

    It keeps freed blocks of up to 32 MB for later, in a heap for each thread. Between two steps that work on other
    sizes of activations, that is gigabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def releasing(step: Callable[[], None]) -> Callable[[], None]:
    """The same step of some progress, behind which freed memory is released."""

    def released() -> None:
        release_freed_memory()
        step()

    return released
