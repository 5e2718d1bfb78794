"""What the operations of an ML Program compute, in numpy.

Sources: the docstrings of coremltools.converters.mil.mil.ops.defs (iOS 15 to iOS 18), under the same names and with the
same parameters. Only what pocketlm's programs use is here; a parameter value that is not implemented raises.
Floating point values are float32, whatever the program calls them: the interpreter rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (*, in) @ weight (out, in).T + bias (out,)."""
    rows = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        rows += bias
    result: Array = rows.reshape(*x.shape[:-1], weight.shape[0])
    return result


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    """Batched product over the last two axes, either side transposed first."""
    left = x.swapaxes(-1, -2) if transpose_x else x
    right = y.swapaxes(-1, -2) if transpose_y else y
    product: Array = np.matmul(left, right)
    return product


def softmax(x: Array, axis: Any = -1) -> Array:
    """exp(x - max) / sum; a row of -inf gives NaN, as it does on every device."""
    shifted = np.exp(x - x.max(axis=int(axis), keepdims=True))
    shifted /= shifted.sum(axis=int(axis), keepdims=True)
    result: Array = shifted
    return result


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp of a large -x is inf, and x / inf the zero that is wanted
        result: Array = x / (1 + np.exp(-x))
    return result


def gelu(x: Array, mode: Any = "EXACT") -> Array:
    """x * Phi(x), or Hendrycks and Gimpel's approximation of it with tanh."""
    if str(mode) == "TANH_APPROXIMATION":
        inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
        result: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
        return result
    if str(mode) != "EXACT":
        raise NotImplementedError(f"gelu in mode {mode}")
    exact: Array = (0.5 * x * (1 + np.asarray(_erf(x / 2**0.5), np.float64))).astype(np.float32)
    return exact


_erf = np.frompyfunc(math.erf, 1, 1)


def topk(x: Array, k: Any, axis: Any = -1, ascending: Any = False, **options: Any) -> list[Array]:
    """The k largest values along ``axis`` and where they are, the largest first."""
    if ascending or not options.get("sort", True) or not options.get("return_indices", True):
        raise NotImplementedError("topk of the smallest, unsorted, or without indices")
    order = np.argsort(-x, axis=int(axis), kind="stable").take(range(int(k)), axis=int(axis))
    return [np.take_along_axis(x, order, int(axis)), order.astype(np.int32)]


def scatter_along_axis(
    data: Array, indices: Array, updates: Array, axis: Any = 0, mode: Any = "add", validate_indices: Any = False
) -> Array:
    """data with values replaced at these places of ``axis``."""
    if str(mode) != "update":
        raise NotImplementedError(f"scatter_along_axis in mode {mode}")
    result = data.copy()
    np.put_along_axis(result, indices, updates, int(axis))
    return result


def rsqrt(x: Array, epsilon: Any = 1e-12) -> Array:
    """1 / sqrt(x + epsilon)."""
    result: Array = 1 / np.sqrt(x + np.float32(epsilon))
    return result.astype(np.float32)


def reduce_mean(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    """Mean over ``axes``; over all if there are none."""
    result: Array = x.mean(axis=_axes(axes), keepdims=bool(keep_dims), dtype=np.float32)
    return result


def reduce_sum(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    """Sum over ``axes``; over all if there are none."""
    result: Array = x.sum(axis=_axes(axes), keepdims=bool(keep_dims), dtype=np.float32)
    return result


def reduce_max(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    """Maximum over ``axes``; over all if there are none."""
    result: Array = x.max(axis=_axes(axes), keepdims=bool(keep_dims))
    return result


def gather(x: Array, indices: Array, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Array:
    """Slices of x along ``axis``. iOS 17: a negative index is out of bounds, and this raises IndexError for one."""
    if int(batch_dims) != 0:
        raise NotImplementedError("gather with batch_dims")
    limit = x.shape[int(axis)]
    if indices.size and not 0 <= indices.min() <= indices.max() < limit:
        raise IndexError(f"gather: an index lies outside 0 ... {limit - 1}")
    result: Array = np.take(x, indices, axis=int(axis))
    return result


def concat(values: Sequence[Array], axis: Any, interleave: Any = False) -> Array:
    """Join along ``axis``."""
    if interleave:
        raise NotImplementedError("concat with interleave")
    return np.concatenate([np.atleast_1d(value) for value in values], axis=int(axis))


def split(x: Array, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> list[Array]:
    """Cut along ``axis`` into equal parts, or into parts of given sizes."""
    if split_sizes is not None:
        return np.split(x, np.cumsum(split_sizes)[:-1], axis=int(axis))
    return np.split(x, int(num_splits), axis=int(axis))


def reshape(x: Array, shape: Any) -> Array:
    """Same values, new shape; one dimension may be -1."""
    wanted = [int(size) for size in shape]
    if 0 in wanted:
        raise NotImplementedError("reshape with a dimension of 0")
    result: Array = x.reshape(wanted)
    return result


def transpose(x: Array, perm: Any) -> Array:
    """Axes in a new order."""
    result: Array = x.transpose([int(axis) for axis in perm])
    return result


def expand_dims(x: Array, axes: Any) -> Array:
    """New axes of size 1, at these places of the result."""
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


def squeeze(x: Array, axes: Any = None) -> Array:
    """Without these axes of size 1, or without all of them."""
    return np.squeeze(x, _axes(axes))


def tile(x: Array, reps: Any) -> Array:
    """Repeat the whole array along each axis."""
    return np.tile(x, [int(count) for count in reps])


def slices(
    shape: Sequence[int],
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> tuple[slice | int, ...]:
    """The index that slice_by_index and slice_update describe: masked ends are open, squeezed axes are picked."""

    def flag(mask: Any, axis: int) -> bool:
        return mask is not None and bool(mask[axis])

    index: list[slice | int] = []
    for axis in range(len(shape)):
        if flag(squeeze_mask, axis):
            index.append(int(begin[axis]))
            continue
        first = None if flag(begin_mask, axis) else int(begin[axis])
        last = None if flag(end_mask, axis) else int(end[axis])
        index.append(slice(first, last, 1 if stride is None else int(stride[axis])))
    return tuple(index)


def slice_by_index(x: Array, begin: Any, end: Any, **options: Any) -> Array:
    """A view of x."""
    result: Array = x[slices(x.shape, begin, end, **options)]
    return result


def slice_update(x: Array, update: Array, begin: Any, end: Any, **options: Any) -> Array:
    """A copy of x with one slice replaced."""
    result = x.copy()
    write_slice(result, update, begin, end, **options)
    return result


def write_slice(x: Array, update: Array, begin: Any, end: Any, **options: Any) -> None:
    """slice_update in place. Raises ValueError if the update does not fill the slice exactly."""
    index = slices(x.shape, begin, end, **options)
    if x[index].shape != update.shape:
        raise ValueError(f"slice_update: a slice of shape {x[index].shape} cannot take {update.shape}")
    x[index] = update


_CASTS: Mapping[str, type] = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}


def cast(x: Array, dtype: Any) -> Array:
    """Another type; floats are cut off towards zero when they become integers."""
    if str(dtype) not in _CASTS:
        raise NotImplementedError(f"cast to {dtype}")
    return np.asarray(x).astype(_CASTS[str(dtype)])


def range_1d(start: Any, end: Any, step: Any) -> Array:
    """start, start + step, ... up to but without end."""
    return np.arange(start, end, step, dtype=np.asarray(start).dtype)


def shape(x: Array) -> Array:
    """The shape as int32."""
    return np.array(x.shape, np.int32)


def _axes(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


# Elementwise operations broadcast as numpy's do.
OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "cast": cast,
    "concat": concat,
    "equal": np.equal,
    "expand_dims": expand_dims,
    "gather": gather,
    "gelu": gelu,
    "greater": np.greater,
    "less_equal": np.less_equal,
    "linear": linear,
    "logical_and": np.logical_and,
    "logical_not": np.logical_not,
    "matmul": matmul,
    "maximum": np.maximum,
    "mul": np.multiply,
    "range_1d": range_1d,
    "real_div": np.divide,
    "reduce_max": reduce_max,
    "reduce_mean": reduce_mean,
    "reduce_sum": reduce_sum,
    "reshape": reshape,
    "rsqrt": rsqrt,
    "scatter_along_axis": scatter_along_axis,
    "shape": shape,
    "silu": silu,
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
    "softmax": softmax,
    "split": split,
    "squeeze": squeeze,
    "sub": np.subtract,
    "tanh": np.tanh,
    "tile": tile,
    "topk": topk,
    "transpose": transpose,
}

# numpy's own functions take their arguments by position.
ELEMENTWISE = frozenset(name for name, function in OPERATIONS.items() if isinstance(function, np.ufunc))
