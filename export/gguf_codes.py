"""Integers that a GGUF file holds already, taken as they are where nothing is lost.

Formats: ggml's block_q4_0 (a float16 scale, 32 codes of 4 bits with 8 added, the first half of the columns in the low
nibbles) and block_q8_0 (a float16 scale, 32 codes of 8 bits).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..quantize.tensor import CODE_RANGE, SMALLEST_SCALE, QuantizedTensor, to_scale_grid

_BLOCK = 32
_BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}
STORED_KINDS = tuple(_BLOCK_BYTES)


def stored_codes(raw: NDArray[np.uint8], kind: str, shape: tuple[int, ...]) -> QuantizedTensor | None:
    """A matrix's canonical form, if its codes and scales have one: None for other types, and for scales off the grid.

    raw  the bytes of all blocks, row after row

    Q4_0 has groups of 32 as int4 has. Scales may be negative there: then the codes are turned around, which -8 cannot
    be. int8 has one scale for a row, so that Q8_0 fits only where a row's scales are all the same.
    """
    if kind not in _BLOCK_BYTES or len(shape) != 2:
        return None
    rows, columns = shape
    blocks = raw.reshape(rows, columns // _BLOCK, _BLOCK_BYTES[kind])
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)  # (rows, blocks)
    codes = _four_bits(blocks) if kind == "Q4_0" else np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    codes = np.where(scales[..., None] == 0, 0, codes * np.where(scales < 0, -1, 1)[..., None])
    scales = np.where(scales == 0, np.float32(SMALLEST_SCALE), np.abs(scales))
    bits = 4 if kind == "Q4_0" else 8
    if bits == 8:
        if (scales != scales[:, :1]).any():
            return None
        scales = scales[:, :1]
    low, high = CODE_RANGE[bits]
    if codes.min() < low or codes.max() > high or not np.array_equal(to_scale_grid(scales), scales):
        return None
    return QuantizedTensor(codes.reshape(rows, columns).astype(np.int8), np.ascontiguousarray(scales), bits)


def _four_bits(blocks: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(rows, blocks, 18) -> codes (rows, blocks, 32)."""
    packed = blocks[..., 2:]
    both = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], -1)
    codes: NDArray[np.int16] = both.astype(np.int16) - np.int16(8)
    return codes
