"""ExecuTorch as a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..export.caches import target_cache
from ..export.config import ModelConfig
from ..quantize.cache import INT8_HEAD, CacheFormat
from ..quantize.store import Weights
from . import executorch_session
from .session import Session
from .target import Details, ReadBack, Target

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.to_torch import CacheArithmetic


def _write(folder: Path, config: ModelConfig, weights: Weights, context: int, details: Details) -> None:
    from ..export.to_executorch import write_executorch

    int8 = target_cache("executorch", details.cache) is INT8_HEAD
    write_executorch(folder, config, weights, context, bos_id=details.beginning, eos_ids=details.stops, int8_cache=int8)


def _read_back(folder: Path, config: ModelConfig) -> ReadBack:
    from .pte_reader import read_back

    return read_back(folder, config)


def _open(folder: Path, threads: int) -> Session:
    return executorch_session.ExecuTorchSession(folder, threads)


def _exact(folder: Path, config: ModelConfig, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    from .executorch_exact import exact_logits

    return exact_logits(folder, config, tokens)


def _emulate(
    weights: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    *,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
    cache: CacheArithmetic | None = None,
) -> NDArray[np.float32]:
    from ..export.to_torch import reference_logits
    from .executorch_arithmetic import int8_per_token

    return reference_logits(weights, config, tokens, int8_per_token, embedding_noise, first, cache)


def _locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    from .executorch_exact import locate

    return locate(folder, config, weights, tokens)


def _exactness(config: ModelConfig, weights: Weights, cache: CacheFormat | None) -> Mapping[str, float]:
    from .executorch_exactness import one_layer_exactness

    return one_layer_exactness(config, weights, int8_cache=cache is INT8_HEAD)


def _int8_per_head(weights: Weights) -> CacheArithmetic:
    from .executorch_arithmetic import int8_per_head

    return lambda x, layer, part: int8_per_head(x)


def _remarks(folder: Path) -> tuple[str, ...]:
    from ..export.executorch_file import MODEL_FILE
    from .pte_report import remarks

    return remarks(folder / MODEL_FILE)


EXECUTORCH = Target(
    "executorch", _write, _read_back, _open, _exact, _emulate, executorch_session.version, _locate,
    exactness=_exactness, limits={"runtime.noise_floors": 1.5}, remarks=_remarks,
    cache_arithmetic={INT8_HEAD.name: _int8_per_head},
)  # fmt: skip
