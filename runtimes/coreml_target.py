"""Core ML as a target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.store import Weights
from .session import Session
from .target import Details, ReadBack, Target

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.to_torch import CacheArithmetic


def _write(folder: Path, config: ModelConfig, weights: Weights, context: int, details: Details) -> None:
    from .mil_package import import_coremltools

    import_coremltools()
    from ..export import apple
    from ..export.to_coreml import write_coreml

    metadata = {"pocketlm.recipe": details.recipe}
    if details.hub_id:
        metadata[apple.HUB_ID] = details.hub_id
    write_coreml(
        folder,
        config,
        weights,
        context,
        functions=apple.FUNCTIONS[details.coreml_shapes],
        metadata=metadata,
        licence=details.licence or "",
        description=details.name,
    )


def _read_back(folder: Path, config: ModelConfig) -> ReadBack:
    from .coreml_reader import read_back

    return read_back(folder, config)


def _open(folder: Path, threads: int) -> Session:
    from .coreml_session import open_coreml

    return open_coreml(folder, threads)


def _exact(folder: Path, config: ModelConfig, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    from .coreml_exact import exact_logits

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
    from .fp16_emulation import emulated_logits

    assert cache is None, "its states are fp16, which the emulation knows"
    return emulated_logits(weights, config, tokens, embedding_noise=embedding_noise, first=first)


def _evaluated_by() -> str:
    from .coreml_session import judged_by

    return judged_by()


def _locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    from .coreml_locate import locate

    return locate(folder, config, weights, tokens)


def _lint(folder: Path) -> tuple[str, ...]:
    from .coreml_lint import lint
    from .coreml_session import PACKAGE

    return tuple(map(str, lint(folder / PACKAGE)))


COREML = Target(
    "coreml", _write, _read_back, _open, _exact, _emulate, _evaluated_by, _locate, lint=_lint,
)  # fmt: skip
