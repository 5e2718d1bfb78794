"""From a checkpoint to canonical weights: every tensor read once, quantised once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..errors import InputError
from ..quantize.recipe import Format, Recipe
from ..quantize.rtn import relative_error, round_to_nearest
from ..quantize.store import CanonicalTensor
from ..quantize.tensor import QuantizedTensor
from .calibration_store import CalibrationStore
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class TensorError:
    """What quantising one tensor lost: |w - dequantised| / |w| (Frobenius), or where it was calibrated, the same of its
    outputs over the calibration text.
    """

    name: str
    format: Format
    relative_error: float


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a recipe's formats apply: matrices are quantised, norms and biases are not."""
    return len(shape) == 2 and name.endswith(".weight")


def quantize_checkpoint(
    checkpoint: Checkpoint,
    names: list[str],
    recipe: Recipe,
    report: Callable[[TensorError], None],
    calibrated: CalibrationStore | None = None,
    threads: int = 2,
) -> Iterator[tuple[str, CanonicalTensor]]:
    """The canonical form of the named tensors, in that order; ``report`` hears of each one's error.

    What ``calibrated`` holds is taken from there; what a file holds as the recipe wants it stays as it is, if integers
    are not chosen for a calibration text. Tensors are quantised ``threads`` at a time (numpy lets go of the
    interpreter), so that about that many are in memory. Raises InputError naming the tensor if its format does not fit.
    """
    check_formats(checkpoint, names, recipe)

    def work(name: str) -> tuple[CanonicalTensor, TensorError]:
        if calibrated is not None and name in calibrated:
            return calibrated[name], TensorError(name, recipe.format_of(name), calibrated.errors.get(name, 0.0))
        stored = checkpoint.stored_codes(name) if recipe.method == "rtn" else None
        if stored is not None and _is_in(recipe.format_of(name), stored):
            return stored, TensorError(name, recipe.format_of(name), 0.0)
        return quantize_tensor(name, checkpoint.read(name), recipe)

    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(work, name) for name in names[:threads]]
        for index, name in enumerate(names):
            tensor, error = waiting.pop(0).result()
            if index + threads < len(names):
                waiting.append(pool.submit(work, names[index + threads]))
            report(error)
            yield name, tensor


def matrix_formats(checkpoint: Checkpoint, names: list[str], recipe: Recipe) -> dict[str, Format]:
    """The format of each weight that a recipe's formats apply to."""
    return {name: recipe.format_of(name) for name in names if is_linear(name, checkpoint.shape(name))}


def _is_in(form: Format, tensor: QuantizedTensor) -> bool:
    return form.bits == tensor.bits and (form.group or tensor.shape[1]) == tensor.group


def check_patterns(checkpoint: Checkpoint, names: list[str], recipe: Recipe) -> None:
    """Raise InputError if a recipe has a pattern that no matrix of the model fits: it would silently do nothing."""
    matrices = [name for name in names if is_linear(name, checkpoint.shape(name))]
    for pattern in recipe.overrides:
        if not any(fnmatchcase(name, pattern) for name in matrices):
            raise InputError(
                f"recipe {recipe.name}: no weight matrix of the model fits the pattern {pattern!r}; "
                f"names are like {matrices[-1]}"
            )


def check_formats(checkpoint: Checkpoint, names: list[str], recipe: Recipe) -> None:
    """Raise InputError if a group does not divide a layer, before any work is done."""
    for name in names:
        shape = checkpoint.shape(name)
        group = recipe.format_of(name).group
        if group and is_linear(name, shape) and shape[1] % group:
            fitting = [size for size in (32, 64, 128) if shape[1] % size == 0]
            advice = f"groups of {' or '.join(map(str, fitting))} fit" if fitting else "use int8 for it"
            raise InputError(f"{name}: groups of {group} do not divide its {shape[1]} columns; {advice}")


def quantize_tensor(name: str, weight: np.ndarray, recipe: Recipe) -> tuple[CanonicalTensor, TensorError]:
    """One tensor's canonical form and what it lost."""
    chosen = recipe.format_of(name) if is_linear(name, weight.shape) else Format(_small_kind(recipe))
    if chosen.bits is not None:
        try:
            quantized = round_to_nearest(weight, chosen.bits, chosen.group)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return quantized, TensorError(name, chosen, relative_error(weight, quantized))
    dense: CanonicalTensor = weight if chosen.kind == "fp32" else _to_half(weight)
    return dense, TensorError(name, chosen, _dense_error(weight, dense))


def _small_kind(recipe: Recipe) -> str:
    """Norms and biases lie on the fp16 grid, which Core ML computes in, unless the recipe is exact."""
    return "fp32" if recipe.linear.kind == "fp32" else "fp16"


def _to_half(weight: np.ndarray) -> np.ndarray:
    """On the fp16 grid; a tensor with values that fp16 cannot hold stays float32."""
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    return half if np.isfinite(half).all() else weight


def _dense_error(weight: np.ndarray, stored: CanonicalTensor) -> float:
    assert not isinstance(stored, QuantizedTensor)
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(stored.astype(np.float32) - weight)) / norm if norm else 0.0
