"""How fast a chip may run a model: the roofline of its memory bandwidth and its arithmetic.

Decoding reads every weight once for each token, so bandwidth decides; prefill reads them once for many tokens, so
arithmetic does (Williams et al. 2009). Nothing is ever at its best: kernels reach a share of either, and which share is
all that is fitted here, once for all models and chips. benchmarks/plan_validation.toml compares with published figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..export.config import EMBEDDING, POSITIONS
from .chips import Chip
from .plan_memory import cache_bytes_per_token
from .plan_storage import Stored, code_bytes, mixture_layers, scale_count


@dataclass(frozen=True)
class Efficiency:
    """Shares of the best that kernels reach; ``layer_seconds`` pass for each layer and token with nothing computed.

    bandwidth  of the memory's, when decoding
    int8       of the four fastest cores' multiply-adds, in prefill
    float32    the same where weights are floating point, and in attention
    """

    bandwidth: float
    int8: float
    float32: float
    layer_seconds: float


# The middle is the median of what ExecuTorch's README (examples/models/llama) publishes for three phones; a plan is
# fitted to no other source. A layer is about eight rounds of waking four threads, 4 microseconds each.
TYPICAL = Efficiency(0.55, 0.24, 0.45, 30e-6)
# What most published figures lie between (docs/plan.md).
SLOW = Efficiency(0.35, 0.12, 0.25, 60e-6)
FAST = Efficiency(0.70, 0.32, 0.55, 15e-6)
# Apple's GPUs, which Core ML uses, beside four of the same chip's cores: llama.cpp's discussion 4167, M1.
_GPU_BANDWIDTH, _GPU_ARITHMETIC = 0.80 / 0.55, 3.6


@dataclass(frozen=True)
class Work:
    """What one token costs.

    weight_bytes     read for it when it is decoded
    cache_bytes      of keys and values of one position, in all layers
    int8, float32    multiply-adds of the layers' matrices, by what they are computed in
    head             multiply-adds of the head, which prefill does once
    attention        multiply-adds for each position that the token looks at
    layers           of the decoder
    """

    weight_bytes: int
    cache_bytes: int
    int8: int
    float32: int
    head: int
    attention: int
    layers: int


def on_gpu(at: Efficiency) -> Efficiency:
    """The shares that Apple's GPUs reach, of their chip's bandwidth and of its cores' multiply-adds."""
    return Efficiency(
        at.bandwidth * _GPU_BANDWIDTH, at.int8 * _GPU_ARITHMETIC, at.float32 * _GPU_ARITHMETIC, at.layer_seconds
    )


def decode_seconds(work: Work, chip: Chip, filled: int, at: Efficiency = TYPICAL) -> float:
    """For one token behind ``filled`` others."""
    reading = (work.weight_bytes + filled * work.cache_bytes) / (chip.bandwidth * at.bandwidth)
    return max(reading, _computing(work, chip, filled, at, work.head)) + work.layers * at.layer_seconds


def prefill_seconds(work: Work, chip: Chip, tokens: int, at: Efficiency = TYPICAL) -> float:
    """For a prompt of ``tokens``, until the first token is there."""
    computing = tokens * _computing(work, chip, tokens // 2, at, work.head // max(tokens, 1))
    return max(computing, work.weight_bytes / (chip.bandwidth * at.bandwidth)) + work.layers * at.layer_seconds


def _computing(work: Work, chip: Chip, positions: int, at: Efficiency, head: int) -> float:
    quantised = work.int8 >= work.float32
    int8 = work.int8 + (head if quantised else 0)
    float32 = work.float32 + (0 if quantised else head) + positions * work.attention
    return int8 / (chip.int8_rate * at.int8) + float32 / (chip.float_rate * at.float32)


def measure_work(stored: Stored, target: str) -> Work:
    """What a token costs in a target's artifact.

    Runtimes on CPUs widen fp16 weights when they load them; Core ML keeps them, has a cache of fp16, and computes all
    formats alike.
    """
    config, names = stored.config, set(stored.formats) - {EMBEDDING, POSITIONS}
    widened = target != "coreml"
    idle = _idle_experts(stored) if target == "onnx" else (lambda name: False)
    active = [name for name in names if not idle(name)]
    macs = {True: 0, False: 0}
    weights = 0
    for name in dict.fromkeys([*active, config.head_name]):
        (rows, columns), form = stored.shapes[name], stored.formats[name]
        dense = 2 if widened and form.kind == "fp16" else 1
        scales = scale_count(form, rows, columns) * (4 if target == "onnx" else 2) if form.bits else 0
        weights += code_bytes(form, rows, columns) * dense + scales
        if name != config.head_name:
            macs[form.bits is not None or not widened] += rows * columns
    rows, columns = stored.shapes[config.head_name]
    attentions = [layer.attention for layer in config.layers]
    return Work(
        weight_bytes=weights,
        cache_bytes=cache_bytes_per_token(target, stored),
        int8=macs[True],
        float32=macs[False],
        head=rows * columns,
        attention=sum(2 * attention.query_width for attention in attentions),
        layers=len(attentions),
    )


def _idle_experts(stored: Stored) -> Callable[[str], bool]:
    """Which weights a token leaves alone: where a layer's mixture is one operation, all but the active experts."""
    skipped: dict[str, int] = {}
    for index in mixture_layers(stored):
        experts = stored.config.layers[index].mlp.experts
        assert experts is not None
        skipped[f"model.layers.{index}.mlp.experts."] = experts.active

    def idle(name: str) -> bool:
        prefix, _, rest = name.partition(".experts.")
        active = skipped.get(f"{prefix}.experts.")
        return active is not None and int(rest.partition(".")[0]) >= active

    return idle
