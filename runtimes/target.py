"""What a target must offer to be written, run and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.cache import CacheFormat
from ..quantize.recipe import Format
from ..quantize.store import Weights
from .session import RowsSession, Session

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.to_torch import CacheArithmetic


@dataclass(frozen=True)
class ReadBack:
    """What was found in a finished file.

    weights    canonical tensors, parsed out of the file, by checkpoint names
    constants  epsilons and attention parameters, named as ``export.inventory`` names them
    caches     the name of each layer's ``quantize.cache.CacheFormat``; empty where a target has only one
    """

    weights: Weights
    constants: Mapping[str, float]
    caches: tuple[str, ...] = ()


class Emulation(Protocol):
    """The fp32 reference with a target's activation arithmetic put in: what correct kernels would compute."""

    def __call__(
        self,
        weights: Weights,
        config: ModelConfig,
        tokens: NDArray[np.int64],
        *,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
        first: int = 0,
        cache: CacheArithmetic | None = None,
    ) -> NDArray[np.float32]:
        """As ``export.to_torch.reference_logits``: float32 (batch, tokens - first, vocab_size)."""
        ...


@dataclass(frozen=True)
class Details:
    """What an artifact says about itself, where its format has a place for that, and what was chosen for one target.

    beginning      token id that begins a text, if there is one; ``stops`` are those that end an answer
    hub_id         the model's name on the Hugging Face Hub (``organization/name``), if it was given by it
    coreml_shapes  "fixed": a function for a chunk of the prompt and one for a token; "flexible": one for any number
    cache          "float" or "int8", see ``export.caches``
    """

    beginning: int | None = None
    stops: tuple[int, ...] = ()
    name: str = ""
    hub_id: str | None = None
    recipe: str = ""
    licence: str | None = None
    coreml_shapes: str = "fixed"
    cache: str = "float"


@dataclass(frozen=True)
class Target:
    """One format of artifact. ``folder`` is the target's own folder in the bundle.

    write         (folder, config, canonical weights, context in tokens, details): write the artifact
    read_back     (folder, config): parse weights and constants out of the finished file
    open_session  (folder, threads): the artifact as shipped
    open_rows     the same with the logits of several tokens at once, for guesses; None where the artifact gives one
    exact_logits  (folder, config, token ids int64 (batch, tokens)) -> float32 (batch, tokens, vocab): the finished
                  artifact evaluated with fp32 activations, through its cache; None where the runtime has no such mode
    emulate       the reference with the shipped kernels' activation arithmetic; None where they compute in fp32
    evaluated_by  what runs it, with its version
    exactness     (config, canonical weights, the cache's format) -> what single operations and layers of the shipped
                  kernels, fed the same input, deviate from the emulation, relative to the largest value; None if they
                  were not run apart
    limits        changes to the limits of ``thresholds``
    locate        (folder, config, weights, token ids) -> one line that names the first operation that deviates
    notes         what a reader of the certificate must know
    remarks       (folder) -> the same of this artifact
    check         (config, formats of the matrices by name): raises InputError for what the target cannot hold
    cache_arithmetic  name of a CacheFormat -> (canonical weights) -> its arithmetic in the reference; for all caches
                  that a target can have but those of its own floating point, which ``emulate`` knows
    lint          (folder) -> one line for each construct known to be slow or to fail on a device, with its source
    """

    name: str
    write: Callable[[Path, ModelConfig, Weights, int, Details], None]
    read_back: Callable[[Path, ModelConfig], ReadBack]
    open_session: Callable[[Path, int], Session]
    exact_logits: Callable[[Path, ModelConfig, NDArray[np.int64]], NDArray[np.float32]] | None
    emulate: Emulation | None
    evaluated_by: Callable[[], str]
    locate: Callable[[Path, ModelConfig, Weights, NDArray[np.int64]], str] | None = None
    exactness: Callable[[ModelConfig, Weights, CacheFormat | None], Mapping[str, float]] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: Callable[[Path], tuple[str, ...]] | None = None
    lint: Callable[[Path], tuple[str, ...]] | None = None
    check: Callable[[ModelConfig, Mapping[str, Format]], None] | None = None
    cache_arithmetic: Mapping[str, Callable[[Weights], CacheArithmetic]] = field(default_factory=dict)
    open_rows: Callable[[Path, int], RowsSession] | None = None
