"""The canonical tensors as constants of a Core ML program."""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (its own documentation's name)
from coremltools.converters.mil.mil.types import np_int4_dtype
from numpy.typing import NDArray

from ..quantize.store import Weights
from ..quantize.tensor import QuantizedTensor
from . import apple
from .config import ModelConfig
from .rope import Rope, rotary_tables


class Constants:
    """The canonical tensors as arrays that MIL constants are made of, kept so that all functions share them."""

    def __init__(self, weights: Weights, config: ModelConfig, slots: int) -> None:
        self.weights = weights
        self.half = not apple.computes_in_fp32(weights)
        self.slots = slots  # tokens that the cache holds
        self.rotary_names = apple.rotary_names(config)
        self._tables: dict[str, NDArray[np.float32]] = {}  # (slots, head_dim / 2)
        self.blockwise = False  # whether any weight has several scales in a row
        self._arrays: dict[str, tuple[NDArray[Any], ...]] = {}

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
        tensor = self.weights[name]
        if not isinstance(tensor, QuantizedTensor):
            return (np.ascontiguousarray(tensor),)
        self.blockwise |= tensor.scales.shape[1] > 1
        codes = np.ascontiguousarray(tensor.codes)
        return (codes.view(np_int4_dtype) if tensor.bits == 4 else codes, tensor.scales.astype(self.dtype))

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
        variable.op.weight_id = name
        return variable
