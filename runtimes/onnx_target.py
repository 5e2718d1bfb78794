"""ONNX as a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..export.caches import target_cache
from ..export.config import ModelConfig
from ..quantize.cache import INT8_CHANNEL
from ..quantize.recipe import Format
from ..quantize.store import Weights
from . import onnx_session
from .session import RowsSession, Session
from .target import Details, ReadBack, Target

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.to_torch import CacheArithmetic


def _write(folder: Path, config: ModelConfig, weights: Weights, context: int, details: Details) -> None:
    from ..export.to_onnx import write_onnx

    write_onnx(folder, config, weights, context, target_cache("onnx", details.cache))


def _read_back(folder: Path, config: ModelConfig) -> ReadBack:
    from .onnx_reader import read_back

    return read_back(folder, config)


def _open(folder: Path, threads: int) -> Session:
    return onnx_session.OnnxSession(folder, threads)


def _open_rows(folder: Path, threads: int) -> RowsSession:
    from .onnx_rows import graph_with_rows

    return onnx_session.OnnxSession(folder, threads, graph_with_rows(folder))


def _exact(folder: Path, config: ModelConfig, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    from .onnx_exact import exact_logits

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
    from .onnx_arithmetic import int8_per_block

    return reference_logits(weights, config, tokens, int8_per_block, embedding_noise, first, cache)


def _check(config: ModelConfig, formats: Mapping[str, Format]) -> None:
    from ..export.to_onnx import check_onnx

    check_onnx(config, formats)


def _locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    from .onnx_locate import locate

    return locate(folder, config, weights, tokens)


def _int8_cache(weights: Weights) -> CacheArithmetic:
    from .cache_arithmetic import int8_per_channel

    return int8_per_channel(weights)


ONNX = Target(
    "onnx", _write, _read_back, _open, _exact, _emulate, onnx_session.version, _locate,
    check=_check, cache_arithmetic={INT8_CHANNEL.name: _int8_cache}, open_rows=_open_rows,
)  # fmt: skip
