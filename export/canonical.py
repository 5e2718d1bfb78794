"""From a checkpoint to canonical weights: every tensor read once, quantised once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from ..errors import InputError
from ..quantize.recipe import GROUPS, Format, Recipe
from ..quantize.rtn import round_to_nearest, squared_error
from ..quantize.store import CanonicalTensor
from ..quantize.tensor import QuantizedTensor
from .calibration_store import CalibrationStore
from .checkpoint import Checkpoint
from .gguf_codes import STORED_KINDS

PIECE_VALUES = 1 << 21  # of float32: 8 MB are little beside the libraries, and much beside the cost of a call


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
    names: Sequence[str],
    recipe: Recipe,
    report: Callable[[TensorError], None],
    calibrated: CalibrationStore | None = None,
    threads: int = 2,
) -> Iterator[tuple[str, CanonicalTensor]]:
    """The canonical form of the named tensors, in that order: rows of a large one come in several pieces.

    ``report`` hears of each tensor's error before its last piece comes. What ``calibrated`` holds is taken from there;
    what a file holds as the recipe wants it stays as it is, if integers are not chosen for a calibration text. Pieces
    are quantised ``threads`` at a time (numpy lets go of the interpreter), and a few more wait to be taken: that is all
    that is in memory. Raises InputError naming the tensor if its format does not fit.
    """
    check_formats(checkpoint, names, recipe)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, bool, Future[_Piece]]] = deque()
        difference = norm = 0.0

        def take() -> tuple[str, CanonicalTensor]:
            nonlocal difference, norm
            name, last, future = waiting.popleft()
            piece = future.result()
            difference, norm = difference + piece.difference, norm + piece.norm
            if last:
                report(TensorError(name, recipe.format_of(name), (difference / norm) ** 0.5 if norm else 0.0))
                difference = norm = 0.0
            return name, piece.tensor

        for name in names:
            jobs = _jobs(checkpoint, name, recipe, calibrated)
            for index, job in enumerate(jobs, 1):
                waiting.append((name, index == len(jobs), pool.submit(job)))
                if len(waiting) > threads + 1:
                    yield take()
        while waiting:
            yield take()


@dataclass(frozen=True)
class _Piece:
    """Rows of a canonical tensor; |w - dequantised|**2 and |w|**2 over them."""

    tensor: CanonicalTensor
    difference: float
    norm: float


def _jobs(
    checkpoint: Checkpoint, name: str, recipe: Recipe, calibrated: CalibrationStore | None
) -> list[Callable[[], _Piece]]:
    """What makes the pieces of a tensor."""
    if calibrated is not None and name in calibrated:
        return [lambda: _Piece(calibrated[name], calibrated.errors.get(name, 0.0) ** 2, 1.0)]
    form = _format(checkpoint, name, recipe)
    if recipe.method == "rtn" and checkpoint.kind(name) in STORED_KINDS:
        return [partial(_stored_or_quantized, checkpoint, name, form)]
    return [partial(_read_and_quantize, checkpoint, name, form, rows) for rows in piece_rows(checkpoint.shape(name))]


def piece_rows(shape: tuple[int, ...]) -> list[range]:
    """The rows of a tensor's pieces: few enough for a piece to be small, and all of what is no matrix."""
    if len(shape) != 2:
        return [range(shape[0] if shape else 1)]
    step = max(1, PIECE_VALUES // shape[1])
    return [range(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _read_and_quantize(checkpoint: Checkpoint, name: str, form: Format, rows: range) -> _Piece:
    return _quantize(name, checkpoint.read(name, rows.start, rows.stop), form)


def _stored_or_quantized(checkpoint: Checkpoint, name: str, form: Format) -> _Piece:
    stored = checkpoint.stored_codes(name)
    if stored is not None and _is_in(form, stored):
        return _Piece(stored, 0.0, 1.0)
    return _quantize(name, checkpoint.read(name), form)


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


def fit_groups(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> Recipe:
    """A recipe that may take smaller groups, with an override for each matrix that needs one.

    shapes  of the weights by name, (out, in) of matrices
    """
    if not recipe.smaller_groups:
        return recipe
    found: dict[str, Format] = {}
    for name, shape in shapes.items():
        form = recipe.format_of(name)
        own = form in (recipe.linear, recipe.embedding)  # not one that an override asks for
        if own and is_linear(name, shape) and form.group and shape[1] % form.group:
            smaller = [group for group in GROUPS if group < form.group and shape[1] % group == 0]
            found |= {name: Format(form.kind, max(smaller))} if smaller else {}
    return replace(recipe, overrides={**recipe.overrides, **found})


def check_formats(checkpoint: Checkpoint, names: Sequence[str], recipe: Recipe) -> None:
    """Raise InputError if a group does not divide a layer, before any work is done."""
    for name in names:
        shape = checkpoint.shape(name)
        group = recipe.format_of(name).group
        if group and is_linear(name, shape) and shape[1] % group:
            fitting = [size for size in GROUPS if shape[1] % size == 0]
            advice = f"groups of {' or '.join(map(str, fitting))} fit" if fitting else "use int8 for it"
            raise InputError(f"{name}: groups of {group} do not divide its {shape[1]} columns; {advice}")


def quantize_tensor(name: str, weight: np.ndarray, recipe: Recipe) -> tuple[CanonicalTensor, TensorError]:
    """One tensor's canonical form and what it lost."""
    form = recipe.format_of(name) if is_linear(name, weight.shape) else Format(_small_kind(recipe))
    if form.kind == "fp16" and not _fits_half(weight):
        form = Format("fp32")
    piece = _quantize(name, weight, form)
    error = (piece.difference / piece.norm) ** 0.5 if piece.norm else 0.0
    return piece.tensor, TensorError(name, recipe.format_of(name), error)


def _quantize(name: str, weight: np.ndarray, form: Format) -> _Piece:
    if form.bits is not None:
        try:
            quantized = round_to_nearest(weight, form.bits, form.group)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return _Piece(quantized, *squared_error(weight, quantized))
    dense = weight if form.kind == "fp32" else weight.astype(np.float16)
    lost = dense.astype(np.float32) - weight
    return _Piece(dense, float(np.vdot(lost, lost)), float(np.vdot(weight, weight)))


def _format(checkpoint: Checkpoint, name: str, recipe: Recipe) -> Format:
    """The format that a tensor gets; one with values that fp16 cannot hold stays float32."""
    shape = checkpoint.shape(name)
    form = recipe.format_of(name) if is_linear(name, shape) else Format(_small_kind(recipe))
    if form.kind != "fp16" or checkpoint.kind(name) == "F16":
        return form
    pieces = (checkpoint.read(name, rows.start, rows.stop) for rows in piece_rows(shape))
    return form if all(map(_fits_half, pieces)) else Format("fp32")


def _small_kind(recipe: Recipe) -> str:
    """Norms and biases lie on the fp16 grid, which Core ML computes in, unless the recipe is exact."""
    return "fp32" if recipe.linear.kind == "fp32" else "fp16"


def _fits_half(weight: np.ndarray) -> bool:
    """Whether fp16 can hold all values: below 65520 they are rounded to one that it has."""
    return not weight.size or bool(max(weight.max(), -weight.min()) < 65520)
