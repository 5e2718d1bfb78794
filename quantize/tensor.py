"""The canonical quantised tensor: the integers and scales that every target stores bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Every scale lies on the bf16 grid within these bounds, and is then exact in bf16 (XNNPACK), fp16 (Core ML)
# and fp32 (ONNX Runtime). 2**-14 is the smallest normal fp16; 65280 is the largest bf16 below fp16's maximum.
SMALLEST_SCALE = 2.0**-14
LARGEST_SCALE = 65280.0

CODE_RANGE = {4: (-8, 7), 8: (-127, 127)}


@dataclass(frozen=True)
class QuantizedTensor:
    """Symmetric group-quantised weights: ``w[o, i] = codes[o, i] * scales[o, i // group]``.

    codes   int8 (out, in), within [-8, 7] for 4 bits and [-127, 127] for 8
    scales  float32 (out, in // group), positive, on the bf16 grid within [2**-14, 65280]
    bits    4 or 8
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group(self) -> int:
        """Input columns that share one scale."""
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """The weights these integers stand for, float32 (out, in)."""
        out, columns = self.shape
        grouped = self.codes.reshape(out, -1, self.group).astype(np.float32)  # (out, groups, group)
        grouped *= self.scales[:, :, None]
        return grouped.reshape(out, columns)

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Output rows [start, stop), without a copy."""
        return QuantizedTensor(self.codes[start:stop], self.scales[start:stop], self.bits)

    def pieces(self, values: int = 1 << 22) -> Iterator[QuantizedTensor]:
        """All rows, in pieces of about so many values."""
        step = max(1, values // self.shape[1])
        return (self.rows(start, start + step) for start in range(0, self.shape[0], step))


def to_bf16_grid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round finite float32 values to the nearest bfloat16 (ties to even), kept as float32."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def to_scale_grid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the grid of canonical scales: bf16, within [2**-14, 65280]."""
    return np.clip(to_bf16_grid(values), np.float32(SMALLEST_SCALE), np.float32(LARGEST_SCALE))


def same(left: QuantizedTensor, right: QuantizedTensor) -> bool:
    """Whether two tensors hold the same integers and the same scales, bit for bit."""
    return (
        left.bits == right.bits
        and left.codes.shape == right.codes.shape
        and left.scales.shape == right.scales.shape
        and bool(np.array_equal(left.codes, right.codes))
        and bool(np.array_equal(left.scales, right.scales))
    )
