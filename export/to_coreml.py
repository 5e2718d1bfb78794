"""The Core ML target: a stateful ML Program written with coremltools' MIL builder. No torch, no tracing.

Runs on iOS 18 and later (4-bit weights in blocks, states, several functions). Everything imported from coremltools
for writing is imported here and in ``coreml_ops``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (its own documentation's name)
from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types

from ..quantize.store import Weights
from . import apple
from .config import ModelConfig
from .coreml_constants import Constants
from .coreml_ops import CoreMLOps
from .coreml_weights import fill_in
from .decoder import decoder

PACKAGE = "model.mlpackage"


def write_coreml(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    context: int,
    *,
    functions: Sequence[apple.Function] | None = None,
    metadata: Mapping[str, str] = {},
    licence: str = "",
    description: str = "",
) -> None:
    """Write ``folder``/model.mlpackage for up to ``context`` tokens.

    Quantised weights keep their codes and scales bit for bit, and are stored once for all functions. ``functions``
    are ``apple.fixed_functions()`` if not given; the first is the package's default. ``metadata`` (such as the recipe)
    is added to the context, the vocabulary and pocketlm's version.
    """
    functions = functions or apple.fixed_functions()
    with _quiet():
        constants = Constants(weights, config, apple.cache_slots(context, functions))
        program = write_program(config, constants, context, functions)
        shutil.rmtree(folder / PACKAGE, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    for key, value in apple.package_metadata(config, context, constants.blockwise, metadata).items():
        model.user_defined_metadata[key] = value
    model.license, model.short_description = licence, description
    model.save(str(folder / PACKAGE))
    fill_in(folder / PACKAGE, [function.name for function in functions], constants.contents)


def write_program(
    config: ModelConfig, constants: Constants, context: int, functions: Sequence[apple.Function]
) -> Program:
    """The decoder as a MIL program with one function for each of ``functions``."""
    program = Program()
    for function in functions:
        program.add_function(function.name, _write_function(config, constants, context, function))
    program.default_function_name = functions[0].name
    program.export_as_multifunction = len(functions) > 1 or functions[0].name != "main"
    # Every pass would look for patterns that are not here, and some copy or hash every weight to do so.
    program.skip_all_passes = True
    return program


def _write_function(config: ModelConfig, constants: Constants, context: int, function: apple.Function) -> Any:
    placeholders = _inputs(config, constants.slots, function)
    with Function(placeholders, opset_version=ct.target.iOS18) as written:
        ops = CoreMLOps(constants, config, function, written.inputs)
        (logits,) = decoder(ops, config, (written.inputs[apple.TOKENS],))
        logits.set_name(apple.LOGITS)
        written.set_outputs([logits])
    if function.tokens is None:
        written.set_input_types(_flexible_types(context, constants.slots))
    return written


def _inputs(config: ModelConfig, slots: int, function: apple.Function) -> dict[str, Any]:
    flexible = function.tokens is None
    shapes: dict[str, tuple[Any, ...]] = {apple.TOKENS: (1, get_new_symbol() if flexible else function.tokens)}
    if flexible:
        shapes[apple.CAUSAL_MASK] = (1, 1, get_new_symbol(), get_new_symbol())
    else:
        shapes[apple.POSITION] = (1,)
    if function.one_row:
        shapes[apple.LOGITS_INDEX] = (1,)
    inputs = {
        name: mb.placeholder(shape, dtype=types.fp16 if name == apple.CAUSAL_MASK else types.int32, name=name)
        for name, shape in shapes.items()
    }
    for name in (apple.KEY_CACHE, apple.VALUE_CACHE):
        inputs[name] = mb.state_tensor_placeholder(apple.state_shape(config, slots), dtype=types.fp16)
        inputs[name].set_name(name)
    return inputs


def _flexible_types(context: int, slots: int) -> tuple[Any, ...]:
    """The ranges of swift-transformers' example, except that its masks may be one wider than the conversation."""

    def up_to(most: int) -> Any:
        return ct.RangeDim(lower_bound=1, upper_bound=most, default=1)

    mask = (1, 1, up_to(context), up_to(slots))
    return (
        ct.TensorType(apple.TOKENS, shape=(1, up_to(context)), dtype=np.int32),
        ct.TensorType(apple.CAUSAL_MASK, shape=mask, dtype=np.float16),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without coremltools' progress bars for passes that do nothing, and its remarks about other packages."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
