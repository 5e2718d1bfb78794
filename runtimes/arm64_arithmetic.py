"""What a correct runtime computes on an ARM core: which arithmetic its kernels follow, by target and by core."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..quantize.cache import CacheFormat
from ..quantize.store import Weights
from ..quantize.tensor import QuantizedTensor
from .certificate import Error
from .golden import expectation
from .judge import NOISE, NOISE_SEEDS, Evaluation, Logits, cache_arithmetic, runtime_limit
from .metrics import deviation
from .target import Emulation
from .targets import get_target

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.to_torch import CacheArithmetic

_CPUINFO = Path("/proc/cpuinfo")

# On cores with dot products alone, MLAS's int8 kernel seems to raise weights and activations by 128 and to take the
# excess off again in fp32. It differs from its emulation by up to 4e-4 of an output at 2048 columns: 100 times NOISE
# and more.
_KERNEL_NOISE = 100.0


def has_dot_products(core: str) -> bool:
    """Whether a core multiplies int8 vectors in one instruction (FEAT_DotProd)."""
    if core != "native":
        return core != "cortex-a53"
    if platform.system() != "Linux":
        return True  # every arm64 Mac has it
    return "asimddp" in _CPUINFO.read_text(encoding="ascii", errors="replace")


def has_matrix_products(core: str) -> bool:
    """Whether a core multiplies int8 matrices in one instruction (FEAT_I8MM)."""
    if core != "native":
        return core in ("cortex-a710", "max")
    return platform.system() == "Linux" and "i8mm" in _CPUINFO.read_text(encoding="ascii", errors="replace")


def arithmetic(name: str, core: str) -> str:
    """Under which name golden.json keeps what a target's kernels give on this core."""
    if name != "onnx":
        return name
    return "onnx-arm64" if has_dot_products(core) else "onnx-fp32"


def emulation_on(name: str, core: str) -> Emulation | None:
    """The emulation for a target on a core, whose noise floor is that of the core's kernels."""
    entry = arithmetic(name, core)
    found = emulation(entry)
    if entry != "onnx-arm64" or found is None or has_matrix_products(core):
        return found
    return partial(_with_kernel_noise, found)


def _with_kernel_noise(
    emulate: Emulation,
    weights: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    *,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
    cache: CacheArithmetic | None = None,
) -> NDArray[np.float32]:
    noise = embedding_noise
    if noise is not None and _has_int8_layers(weights):
        noise = partial(_amplified, noise)
    return emulate(weights, config, tokens, embedding_noise=noise, first=first, cache=cache)


def _amplified(noise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x + _KERNEL_NOISE * (noise(x) - x)


def _has_int8_layers(weights: Weights) -> bool:
    """Whether a linear before the head has int8 weights; behind the head nothing amplifies."""
    layers = (weights[name] for name in weights if name.startswith("model.layers."))
    return any(isinstance(weight, QuantizedTensor) and weight.bits == 8 for weight in layers)


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
    limits: Mapping[str, float],
    cache: CacheFormat | None = None,
) -> dict[str, dict[str, Any]]:
    """What golden.json keeps for a target beside its own entry: ONNX Runtime's other kernels, on ARM cores.

    int8 per token instead of per block makes another number at every position, larger than any noise floor, so a phone
    could not pass the entry of an x86 machine. Its noise floor is another one too: four times that of x86 on SmolLM2.
    """
    from ..export.to_torch import reference_logits

    if name != "onnx":
        return {}
    kept = cache_arithmetic(get_target(name), cache, weights)
    found = {}
    for entry, emulate, noisy in (
        ("onnx-arm64", _onnx_on_arm, partial(_with_kernel_noise, _onnx_on_arm)),
        ("onnx-fp32", reference_logits, reference_logits),
    ):
        logits = emulate(weights, config, evaluation.tokens, first=evaluation.first, cache=kept)
        rounds = entry != "onnx-fp32" or kept is not None  # else only float rounding is left
        floor = _noise_floor(logits, noisy, weights, config, evaluation, kept) if rounds else 0.0
        runtime = Error(kl=0.0, top1=1.0, noise_floor_kl=floor)
        found[entry] = expectation(logits, runtime_limit(runtime, limits))
    return found


def _noise_floor(
    logits: Logits,
    emulate: Emulation,
    weights: Weights,
    config: ModelConfig,
    evaluation: Evaluation,
    cache: CacheArithmetic | None,
) -> float:
    from ..export.to_torch import relative_noise

    def once(seed: int) -> float:
        noise = relative_noise(NOISE, seed)
        noisy = emulate(weights, config, evaluation.tokens, embedding_noise=noise, first=evaluation.first, cache=cache)
        return deviation(logits, noisy).kl

    return median(map(once, NOISE_SEEDS))


def _onnx_on_arm(
    weights: Weights,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    *,
    embedding_noise: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
    cache: CacheArithmetic | None = None,
) -> NDArray[np.float32]:
    from ..export.to_torch import reference_logits
    from .onnx_arithmetic import int8_on_arm

    return reference_logits(weights, config, tokens, int8_on_arm, embedding_noise, first, cache)
