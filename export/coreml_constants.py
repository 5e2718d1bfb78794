"""The canonical tensors as constants of a Core ML program."""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (its own documentation's name)
from coremltools.converters.mil.mil.types import np_int4_dtype
from numpy.typing import NDArray

from ..quantize.store import CanonicalTensor, Dense, Weights, pack_int4
from ..quantize.tensor import QuantizedTensor
from . import apple
from .config import ModelConfig
from .coreml_weights import Content, is_large, is_stand_in, stand_in
from .rope import Rope, rotary_tables


class Constants:
    """The canonical tensors as arrays that MIL constants are made of, kept so that all functions share them.

    Large ones are stand-ins; ``contents`` has what they stand for.
    """

    def __init__(self, weights: Weights, config: ModelConfig, slots: int) -> None:
        self.weights = weights
        self.half = not apple.computes_in_fp32(weights)
        self.slots = slots  # tokens that the cache holds
        self.rotary_names = apple.rotary_names(config)
        self._tables: dict[str, NDArray[np.float32]] = {}  # (slots, head_dim / 2)
        self.blockwise = False  # whether any weight has several scales in a row
        self._arrays: dict[str, tuple[NDArray[Any], ...]] = {}
        self.contents: dict[tuple[str, str], Content] = {}

    @property
    def dtype(self) -> type:
        """What activations are computed in."""
        return np.float16 if self.half else np.float32

    def rotary(self, rope: Rope, head_dim: int) -> list[Any]:
        """Cosines and sines of a rotation for all positions."""
        names = self.rotary_names[rope, head_dim]
        if names[0] not in self._tables:
            self._tables |= zip(names, rotary_tables(rope, head_dim, self.slots), strict=True)
        return [self.shared(name, self._tables[name]) for name in names]

    def arrays(self, name: str) -> tuple[NDArray[Any], ...]:
        """A tensor's array, or its codes and scales."""
        if name not in self._arrays:
            self._arrays[name] = self._load(name)
        return self._arrays[name]

    def _load(self, name: str) -> tuple[NDArray[Any], ...]:
        tensor, value = self.weights[name], apple.identifier(name)
        if not isinstance(tensor, QuantizedTensor):
            return (self._array(tensor, (value, "val"), lambda: [_dense(self.weights[name])]),)
        self.blockwise |= tensor.scales.shape[1] > 1
        codes = tensor.codes.view(np_int4_dtype) if tensor.bits == 4 else tensor.codes
        scales: NDArray[Any] = tensor.scales.astype(self.dtype)
        return (
            self._array(codes, (value, "data"), lambda: map(_packed, _quantized(self.weights[name]).pieces())),
            self._array(scales, (value, "scale"), lambda: [_quantized(self.weights[name]).scales.astype(self.dtype)]),
        )

    def _array(self, array: NDArray[Any], place: tuple[str, str], content: Content) -> NDArray[Any]:
        """The array itself if it is small, else a stand-in, with ``content`` to be written in its place."""
        if not is_large(array.nbytes):
            return np.ascontiguousarray(array)
        self.contents[place] = content
        return stand_in(array.shape, array.dtype)

    def variable(self, name: str) -> Any:
        """The tensor in the current function; compressed if it is quantised."""
        arrays = self.arrays(name)
        if len(arrays) == 1:
            return self.shared(name, arrays[0])
        codes, scales = (
            self.shared(f"{name}:{part}", array) for part, array in zip(("codes", "scales"), arrays, strict=True)
        )
        return mb.constexpr_blockwise_shift_scale(data=codes, scale=scales, name=apple.identifier(name))

    @staticmethod
    def shared(name: str, array: NDArray[Any]) -> Any:
        """A constant that is stored once, however many functions use it."""
        variable = mb.const(val=array, name=apple.identifier(name))
        kind = f"{array.dtype} {array.dtype.metadata} {array.shape}"  # int4 is int8 with metadata
        variable.op.weight_id = kind if is_stand_in(array) else name
        return variable


def _packed(piece: QuantizedTensor) -> NDArray[Any]:
    """Codes as the file has them: two to a byte in two's complement, the even column in the low nibble."""
    return pack_int4(piece.codes) ^ np.uint8(0x88) if piece.bits == 4 else piece.codes


def _dense(tensor: CanonicalTensor) -> Dense:
    assert not isinstance(tensor, QuantizedTensor)
    return tensor


def _quantized(tensor: CanonicalTensor) -> QuantizedTensor:
    assert isinstance(tensor, QuantizedTensor)
    return tensor
