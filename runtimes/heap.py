"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_LARGE = 1 << 20  # bytes


def return_freed_memory() -> None:
    """Have glibc give every large block back to the system as soon as it is freed, for the rest of the process.

    By default it learns from large blocks to keep blocks of up to 32 MB: threads that work on activations of that size
    then hold two or three times what is in use. Mapping a block costs less than a percent of the work on it. Elsewhere
    than with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _LARGE)
