"""Calibration: each linear's integers are chosen for the inputs that it sees when the model reads a text.

Two walks of the decoder over all sequences at once, layer after layer. The first finds the factors of AWQ and folds
them. The second runs the source model and the model quantised so far side by side: a linear that is reached is
quantised, so that what it loses can be made up for by those behind it; the last is the head, if it gets 4 bits. Memory
holds the activations of the text, one layer's weights, and the sums of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.asymmetric import correction
from ..quantize.awq import column_factors
from ..quantize.calibrated import quantize_for_inputs
from ..quantize.gptq import damped
from ..quantize.recipe import Format, Recipe
from ..quantize.refine import output_error
from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor
from .batched import Batch, Batched, Kept, one_thread_each
from .calibration_store import CalibrationStore
from .config import ModelConfig
from .decoder import decoder
from .folded import Array, FoldedWeights, Names, Overlay, exact_factors, source_weight
from .folds import Fold, find_folds
from .inventory import take_inventory
from .recorder import Recorder
from .statistics import magnitudes, second_moments
from .to_torch import TorchOps

_FACTOR_SEQUENCES = 8  # the factors' exponents have few values: more text does not change them
_ROWS_AT_ONCE = 32768  # a head has many more than other weights, and several arrays of this size are held


@dataclass(frozen=True)
class Plan:
    """What a calibration has to do.

    groups  names of weights that share an input and are quantised here, in the decoder's order
    folds   which of these get factors on their columns, and where those are undone
    """

    groups: tuple[Names, ...]
    folds: Mapping[Names, Fold]


def plan_calibration(config: ModelConfig, recipe: Recipe) -> Plan:
    """Which groups a recipe calibrates, and which others carry their factors."""
    linears = list(dict.fromkeys(take_inventory(config).linears))
    chosen = {names for names in linears if any(map(recipe.is_calibrated, names))}
    four = {names for names in chosen if any(recipe.format_of(name).bits == 4 for name in names)}
    folds = {names: fold for names, fold in find_folds(config).items() if names in four}
    owners = {fold.projection for fold in folds.values()}
    return Plan(tuple(names for names in linears if names in chosen or owners & set(names)), folds)


def calibrate(
    weights: Weights,
    config: ModelConfig,
    recipe: Recipe,
    tokens: NDArray[np.int64],
    store: CalibrationStore,
    step: Callable[[], None],
    threads: int,
) -> None:
    """Put the canonical form of all weights that the recipe calibrates into the store, and what is folded with them.

    weights  the source, in fp32
    tokens   ids of the calibration text (sequences, tokens)
    step     called ``calibration_steps`` times

    Raises InputError naming the tensor if it cannot be quantised.
    """
    plan = plan_calibration(config, recipe)
    with ThreadPoolExecutor(threads) as pool, one_thread_each(), torch.inference_mode():
        factors = _find_factors(weights, config, recipe, plan, tokens, store, step, pool)
        folded = FoldedWeights(weights, plan.folds, factors)
        solver = _Solver(plan, folded, recipe, store, pool, step, config.head_name)
        if not all(map(solver.is_finished, plan.groups)):
            _walk([folded, solver.quantised], config, tokens, pool, solver.hear_input)
        small = {name: folded[name] for name in sorted(folded.changed) if name not in store}
        if small:
            store.save(("folded",), {name: np.asarray(tensor, np.float16) for name, tensor in small.items()}, {})


def calibration_steps(plan: Plan) -> int:
    """How often ``calibrate`` calls its ``step``."""
    return len(plan.folds) + len(plan.groups)


def _walk(
    weights: Sequence[Weights],
    config: ModelConfig,
    tokens: NDArray[np.int64],
    pool: ThreadPoolExecutor,
    hear_input: Callable[[Names, Batch], None],
) -> None:
    """Run all sequences through each of several sets of weights: ``hear_input`` gets the first set's, then the next."""
    shared = [Kept(each) for each in weights]
    owners = [each for each in shared for _ in tokens]
    batch = tuple(torch.from_numpy(row[None]) for row in tokens) * len(weights)
    batched = Batched(lambda index: TorchOps(owners[index], config, tokens.shape[1]), pool, skipped=(config.head_name,))
    decoder(Recorder(batched, lambda name, value: None, hear_input), config, batch)


def _find_factors(
    weights: Weights,
    config: ModelConfig,
    recipe: Recipe,
    plan: Plan,
    tokens: NDArray[np.int64],
    store: CalibrationStore,
    step: Callable[[], None],
    pool: ThreadPoolExecutor,
) -> dict[Names, Array]:
    """Factors of each group that has a fold, kept in the store."""

    def hear_input(names: Names, inputs: Batch) -> None:
        if names not in plan.folds:
            return
        if _factors_name(names) not in store:
            arrays = [part.numpy() for part in inputs]
            stacked = np.concatenate([source_weight(weights, name) for name in names])
            group = next(group for name in names if (group := recipe.format_of(name).group))
            factors = column_factors(stacked, second_moments(arrays, arrays, pool), magnitudes(arrays), group)
            norm = plan.folds[names].norm
            found = factors if norm is None else exact_factors(factors, source_weight(weights, norm))
            store.save((_factors_name(names),), {_factors_name(names): found}, {})
        step()

    if all(_factors_name(names) in store for names in plan.folds):
        for _ in plan.folds:
            step()
    else:
        every = max(1, len(tokens) // _FACTOR_SEQUENCES)
        _walk([weights], config, tokens[::every], pool, hear_input)
    return {names: store.dense(_factors_name(names)) for names in plan.folds}


class _Solver:
    """Quantises each group when the walk reaches it. ``quantised`` are the weights of the model quantised so far."""

    def __init__(
        self,
        plan: Plan,
        folded: FoldedWeights,
        recipe: Recipe,
        store: CalibrationStore,
        pool: ThreadPoolExecutor,
        step: Callable[[], None],
        head_name: str,
    ) -> None:
        self._plan, self._folded, self._recipe = plan, folded, recipe
        self._store, self._pool, self._step = store, pool, step
        # A tied head is quantised last: until then, and whenever work goes on, the embedding is the source's.
        self.quantised: Weights = Overlay(store, folded, below=(head_name,))

    def is_finished(self, names: Names) -> bool:
        """Whether the store holds the group."""
        return all(name in self._store for name in names)

    def hear_input(self, names: Names, inputs: Batch) -> None:
        """Sum up a group's inputs, the source model's and the quantised model's, and quantise it for them."""
        if names not in self._plan.groups:
            return
        if not self.is_finished(names):
            arrays = [part.numpy() for part in inputs]
            exact, actual = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
            hessian = second_moments(actual, actual, self._pool)
            drift = second_moments([a - b for a, b in zip(exact, actual, strict=True)], actual, self._pool)
            self._finish(names, hessian, correction(damped(hessian), drift))
        self._step()

    def _finish(self, names: Names, hessian: Array, change: Array) -> None:
        tensors: dict[str, CanonicalTensor] = {}
        errors: dict[str, float] = {}
        for form in dict.fromkeys(map(self._recipe.format_of, names)):
            parts = {n: source_weight(self._folded, n) for n in names if self._recipe.format_of(n) == form}
            for name, tensor in self._quantize(parts, form, hessian, change).items():
                tensors[name] = tensor
                if isinstance(tensor, QuantizedTensor):
                    errors[name] = output_error(parts[name], hessian, tensor)
        self._store.save(names, tensors, errors)

    def _quantize(
        self, parts: Mapping[str, Array], form: Format, hessian: Array, change: Array
    ) -> dict[str, CanonicalTensor]:
        """Weights of one format and one input, changed by ``change`` to make up for what was lost, solved together."""
        if form.bits is None:
            if form.kind == "fp32":
                return dict(parts)
            return {name: weight.astype(np.float16) for name, weight in parts.items()}
        weights = list(parts.values())
        stacked = weights[0] if len(weights) == 1 else np.concatenate(weights)
        solved = []
        try:
            for start in range(0, len(stacked), _ROWS_AT_ONCE):
                rows = stacked[start : start + _ROWS_AT_ONCE]
                wanted = rows + rows @ change
                solved.append(quantize_for_inputs(wanted, hessian, form.bits, form.group, self._pool.map))
        except InputError as error:
            raise InputError(f"{next(iter(parts))}: {error}") from error
        whole = _below_each_other(solved)
        result: dict[str, CanonicalTensor] = {}
        start = 0
        for name, weight in parts.items():
            result[name] = whole.rows(start, start + len(weight))
            start += len(weight)
        return result


def _below_each_other(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    if len(parts) == 1:
        return parts[0]
    codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts])
    return QuantizedTensor(codes, scales, parts[0].bits)


def _factors_name(names: Names) -> str:
    """Where the store keeps a group's factors; no tensor of a checkpoint has such a name."""
    return f"{names[0]}#factors"
