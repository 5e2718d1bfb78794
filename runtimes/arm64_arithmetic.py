"""What a correct runtime computes on an ARM core: which arithmetic its kernels follow, by target and by core."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.store import Weights
from .certificate import Error
from .golden import expectation
from .judge import Evaluation, runtime_limit
from .target import Emulation
from .targets import get_target

if TYPE_CHECKING:
    from torch import Tensor


def has_dot_products(core: str) -> bool:
    """Whether a core multiplies int8 vectors in one instruction (FEAT_DotProd)."""
    if core != "native":
        return core != "cortex-a53"
    if platform.system() != "Linux":
        return True  # every arm64 Mac has it
    return "asimddp" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")


def arithmetic(name: str, core: str) -> str:
    """Under which name golden.json keeps what a target's kernels give on this core."""
    if name != "onnx":
        return name
    return "onnx-arm64" if has_dot_products(core) else "onnx-fp32"


def emulation(name: str) -> Emulation | None:
    """The reference with the arithmetic of this name; None is the reference as it is, in fp32."""
    if name == "onnx-arm64":
        return _onnx_on_arm
    return None if name == "onnx-fp32" else get_target(name).emulate


def arm_expectations(
    name: str,
    weights: Weights,
    config: ModelConfig,
    evaluation: Evaluation,
    runtime: Error,
    limits: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """What golden.json keeps for a target beside its own entry: ONNX Runtime's other kernels, on ARM cores.

    int8 per token instead of per block makes another number at every position, larger than any noise floor, so a phone
    could not pass the entry of an x86 machine. The noise floor is the model's: that of ``runtime`` serves.
    """
    from ..export.to_torch import reference_logits

    found = {}
    for other in ("onnx-arm64", "onnx-fp32") if name == "onnx" else ():
        emulate = emulation(other) or reference_logits
        limit = runtime_limit(runtime, limits) if other == "onnx-arm64" else limits["runtime.kl_rounding"]
        logits = emulate(weights, config, evaluation.tokens, first=evaluation.first)
        found[other] = expectation(logits, limit)
    return found


def _onnx_on_arm(
    weights: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    *,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
) -> NDArray[np.float32]:
    from ..export.to_torch import reference_logits
    from .onnx_arithmetic import int8_on_arm

    return reference_logits(weights, config, tokens, int8_on_arm, embedding_noise, first)
