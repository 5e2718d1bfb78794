"""What a target must offer to be written, run and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.store import Weights
from .session import Session

if TYPE_CHECKING:
    from ..export.to_torch import ActivationArithmetic


@dataclass(frozen=True)
class ReadBack:
    """What was found in a finished file.

    weights    canonical tensors, parsed out of the file, by checkpoint names
    constants  epsilons and attention parameters, named as ``export.inventory`` names them
    """

    weights: Weights
    constants: Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """One format of artifact. ``folder`` is the target's own folder in the bundle.

    write         (folder, config, canonical weights, context in tokens): write the artifact
    read_back     (folder, config): parse weights and constants out of the finished file
    open_session  (folder, threads): the artifact as shipped
    exact_logits  (folder, config, token ids int64 (batch, tokens)) -> float32 (batch, tokens, vocab): the finished
                  artifact evaluated with fp32 activations, through its cache; None where the runtime has no such mode
    activations   the arithmetic the shipped kernels put on the inputs of quantised linears, for the reference to
                  emulate; None where they compute in floating point
    evaluated_by  what ran, with its version
    """

    name: str
    write: Callable[[Path, ModelConfig, Weights, int], None]
    read_back: Callable[[Path, ModelConfig], ReadBack]
    open_session: Callable[[Path, int], Session]
    exact_logits: Callable[[Path, ModelConfig, NDArray[np.int64]], NDArray[np.float32]] | None
    activations: ActivationArithmetic | None
    evaluated_by: str
