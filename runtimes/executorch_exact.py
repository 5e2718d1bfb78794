"""A finished .pte evaluated with fp32 activations, and the search for the operation that deviates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..export.to_executorch import Dequantized, write_executorch
from ..quantize.store import Weights
from .executorch_exactness import EXACT, operation_deviations, parts_of
from .executorch_session import ExecuTorchSession
from .pte_reader import read_back
from .session import AllLogits


def exact_logits(
    folder: Path,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    open_program: Callable[[Path], AllLogits] = ExecuTorchSession,
) -> NDArray[np.float32]:
    """Logits of token ids (batch, tokens): float32 (batch, tokens, vocab_size), through the cache.

    XNNPACK has no kernel for group-wise int4 without int8 activations. So the weights are read back out of the
    finished file, which also proves that its operations are the decoder's, and a program of the same operations is
    run with them as float32. It is as large as the model in float32, on disk and in memory, while this runs.
    ``open_program`` runs the program in a folder.
    """
    weights = Dequantized(read_back(folder, config).weights)
    logits = np.empty((*tokens.shape, config.vocab_size), np.float32)
    with TemporaryDirectory() as scratch:
        write_executorch(Path(scratch), config, weights, tokens.shape[1], every_token=True)
        session = open_program(Path(scratch))
        for row, sequence in zip(logits, tokens.tolist(), strict=True):
            session.reset()
            start = 0
            for part in parts_of(sequence):
                row[start : start + len(part)] = session.run_all(part)
                start += len(part)
    return logits


def locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    """One line: the first operation that, fed what the reference feeds it, gives something else."""
    for name, deviation in operation_deviations(config, weights, tokens[:1, :16]).items():
        if not deviation <= EXACT:
            return f"{name} deviates first, by {deviation:.2g} of its largest value"
    return "no single operation deviates; the error builds up over the layers"
