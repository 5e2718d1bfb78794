"""What both readers of model files share."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


def require_finite(values: NDArray[np.float32], path: Path, name: str) -> NDArray[np.float32]:
    """The values themselves; raises InputError naming the tensor if one is NaN or infinite."""
    # min and max hand NaN on and need no second array of the tensor's size, as np.isfinite would
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise InputError(f"{path}: tensor {name} holds NaN or infinite values; the file is damaged or badly converted")
    return values


def release(mapped: mmap.mmap, start: int, size_bytes: int) -> None:
    """Let go of the pages of a tensor that has been read; they come back from the file if they are touched again.

    Without this a process seems to hold all of the file that it ever read. Windows has no such call.
    """
    if hasattr(mapped, "madvise") and size_bytes:
        aligned = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, aligned, start + size_bytes - aligned)


def read_json_object(path: Path) -> dict[str, Any]:
    """A file that must hold one JSON object; raises InputError if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, it holds a {type(content).__name__}")
    return content


def json_bytes(content: Any) -> bytes:
    """JSON as a file of a model folder has it."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
