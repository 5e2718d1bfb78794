"""A model with factors moved from the norms and projections in front of its linears into these linears' columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..quantize.store import CanonicalTensor, Weights, bias_name
from ..quantize.tensor import QuantizedTensor
from .folds import Fold

Array = NDArray[np.float32]
Names = tuple[str, ...]


class FoldedWeights:
    """Source weights that compute the same as before, apart from float rounding.

    weights  the source, not quantised
    folds    groups of linears with factors, and where those are undone
    factors  float32 (in,) for each of these groups
    """

    def __init__(self, weights: Weights, folds: Mapping[Names, Fold], factors: Mapping[Names, Array]) -> None:
        self._weights = weights
        self._columns = {name: factors[names] for names in folds for name in names}
        undone = {fold.norm or fold.projection or "": factors[names] for names, fold in folds.items()}
        self._rows = undone | {bias_name(name): found for name, found in undone.items()}

    @property
    def changed(self) -> frozenset[str]:
        """Names of all tensors that are not the source's own."""
        return frozenset(name for name in (*self._columns, *self._rows) if name in self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> CanonicalTensor:
        tensor = self._weights[name]
        assert not isinstance(tensor, QuantizedTensor), f"{name} is a source weight"
        if name in self._columns:
            tensor = tensor * self._columns[name]
        if name in self._rows:
            factors = self._rows[name]
            tensor = tensor / (factors[:, None] if tensor.ndim == 2 else factors)
        return tensor


def exact_factors(factors: Array, norm: Array) -> Array:
    """The factors next to the wanted ones by which a norm's weight can be divided without leaving the fp16 grid."""
    divided = (norm / factors).astype(np.float16).astype(np.float32)
    usable = np.isfinite(divided) & (divided != 0)
    return np.divide(norm, divided, out=np.ones_like(norm), where=usable)


class Overlay:
    """The upper weights, and the lower ones where the upper have none, or the name is one of ``below``."""

    def __init__(
        self, upper: Weights | Mapping[str, CanonicalTensor], lower: Weights, below: Collection[str] = ()
    ) -> None:
        self._upper, self._lower, self._below = upper, lower, below

    def __contains__(self, name: object) -> bool:
        return name in self._lower

    def __iter__(self) -> Iterator[str]:
        return iter(self._lower)

    def __getitem__(self, name: str) -> CanonicalTensor:
        from_upper = name in self._upper and name not in self._below
        return self._upper[name] if from_upper else self._lower[name]


def source_weight(weights: Weights, name: str) -> Array:
    """A tensor of a model that is not quantised, as float32."""
    tensor = weights[name]
    assert not isinstance(tensor, QuantizedTensor), f"{name} is a source weight"
    return np.asarray(tensor, np.float32)
