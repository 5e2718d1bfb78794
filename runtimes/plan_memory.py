"""How much memory an artifact takes on a phone, and what an export takes on a computer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..export.apple import PREFILL_TOKENS, cache_slots, fixed_functions, state_shape
from ..export.caches import target_cache
from ..export.config import EMBEDDING, ModelConfig
from ..export.executorch_calls import most_tokens
from ..quantize.recipe import Format
from .calibration import LENGTH, TRAINED_WEIGHTS, calibration_sequences
from .memory_need import PROCESS, Subject, Tensors, memory_needs
from .plan_storage import Stored, code_bytes, coreml_data_bytes, scale_count

PROMPT_TOKENS = 512  # of one call: what our runtimes for ExecuTorch give it; ONNX Runtime takes a prompt as it comes
# Measured with SmolLM2-135M (docs/plan.md): what ONNX Runtime's arena holds for each byte of a layer's values.
_ARENA = 1.33
# The library's pages and its own structures. Measured: ONNX Runtime 40 MB, ExecuTorch 20 MB. Core ML: a guess.
_RUNTIME_BYTES = {"onnx": 40_000_000, "executorch": 20_000_000, "coreml": 60_000_000}


@dataclass(frozen=True)
class Memory:
    """Bytes on the phone.

    weights      as kernels hold them, and the embedding table
    cache        keys and values of the whole context
    activations  of one call with a prompt of PROMPT_TOKENS (Core ML: of a chunk)
    runtime      the library itself
    """

    weights: int
    cache: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations + self.runtime


def phone_memory(target: str, stored: Stored) -> Memory:
    """What a target's artifact takes on a phone with its cache filled; an estimate, but for the cache."""
    calls = {
        "onnx": _onnx_weights(stored),
        "executorch": _executorch_weights(stored),
        "coreml": coreml_data_bytes(stored),
    }
    return Memory(calls[target], cache_bytes(target, stored), _activations(target, stored), _RUNTIME_BYTES[target])


def cache_bytes(target: str, stored: Stored) -> int:
    """Of keys and values: for the context, in Core ML for as many slots as it rounds that up to."""
    if target == "coreml":
        slots = cache_slots(stored.context, fixed_functions())
        return 2 * 2 * prod(state_shape(stored.config, slots))
    return cache_bytes_per_token(target, stored) * stored.context


def cache_bytes_per_token(target: str, stored: Stored) -> int:
    """Of one token's keys and values in all layers."""
    form = target_cache(target, stored.cache)
    return sum(form.token_bytes(layer.attention.kv_heads, layer.attention.head_dim) for layer in stored.config.layers)


def _linears(stored: Stored) -> list[tuple[Format, int, int]]:
    names = [name for name in stored.formats if name != EMBEDDING or name == stored.config.head_name]
    return [(stored.formats[name], *_two(stored.shapes[name])) for name in names]


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _onnx_weights(stored: Stored) -> int:
    """MatMulNBits packs its own copy: codes, and for each block a scale and a sum; dense weights become float32.

    The embedding is read from the mapped file.
    """
    packed = 0
    for form, rows, columns in _linears(stored):
        blocks = rows * -(-columns // (form.group or min(columns & -columns, 128)))
        packed += rows * columns * 4 if form.bits is None else code_bytes(form, rows, columns) + 8 * blocks
    return packed + _table(stored)


def _executorch_weights(stored: Stored) -> int:
    """XNNPACK packs its own copy, and gives back what it was loaded from; dense weights become float32."""
    packed = 0
    for form, rows, columns in _linears(stored):
        scales = scale_count(form, rows, columns) * (2 if form.bits == 4 else 4)
        packed += rows * columns * 4 if form.bits is None else code_bytes(form, rows, columns) + scales
    return packed + _table(stored)


def _table(stored: Stored) -> int:
    rows, columns = _two(stored.shapes[EMBEDDING])
    form = stored.formats[EMBEDDING]
    return code_bytes(form, rows, columns) + (4 * scale_count(form, rows, columns) if form.bits else 0)


def _activations(target: str, stored: Stored) -> int:
    """The values of the widest layer, for each token of a call, and the logits.

    ExecuTorch also plans the values between XNNPACK's parts, for as many tokens as a call may bring.
    """
    logits, widest = stored.config.vocab_size * 4, _layer_values(stored.config)
    tokens = min(PROMPT_TOKENS, stored.context)
    if target == "coreml":
        return PREFILL_TOKENS * widest * 2 + logits
    between = 0
    if target == "executorch":
        attention = max((layer.attention for layer in stored.config.layers), key=lambda a: a.query_width)
        between = (
            8 * most_tokens(stored.context) * (stored.config.hidden_size + attention.query_width + attention.kv_width)
        )
    return int(tokens * widest * 4 * _ARENA) + between + logits


def _layer_values(config: ModelConfig) -> int:
    """Values of a token that are alive at once, about: four hidden states, an attention's, and an MLP's four."""
    return max(
        4 * config.hidden_size
        + 2 * layer.attention.query_width
        + 2 * layer.attention.kv_width
        + (4 if layer.mlp.gated else 2) * layer.mlp.width
        for layer in config.layers
    )


@dataclass(frozen=True)
class ExportCost:
    """What an export takes on the computer it runs on, verification included."""

    memory_bytes: int
    seconds: float


# Seconds for a million parameters, to quantise, and to write and verify each target: benchmarks/export_cost.py with
# SmolLM2-135M on two cores. Time grows with the parameters, as every step reads all of them so many times.
_QUANTISE_SECONDS = {"rtn": 0.024, "layerwise": 1.5, "calibrated": 4.1, "tuned": 9.0}
_TARGET_SECONDS = {"onnx": 0.22, "executorch": 0.12, "coreml": 0.5}
_IDENTITY_SECONDS = {"onnx": 0.005, "executorch": 0.006, "coreml": 0.012}  # to write it and read it back


def planned_subject(tensors: Tensors, stored: Stored) -> Subject:
    """What an export of these tensors would be held to; the text that ships has tokens enough."""
    tokens = calibration_sequences(tensors, stored.config) * min(LENGTH, stored.config.max_position_embeddings)
    return Subject(tensors, stored.config, stored.recipe, stored.context, tokens, stored.cache)


def export_cost(subject: Subject, targets: Sequence[str], certify: str) -> ExportCost:
    """Peak memory and time of an export to these targets; rough: within a factor of two of what was measured.

    Memory is what ``--max-memory`` is held against (memory_need.py).
    """
    method, tensors = subject.recipe.method, subject.checkpoint
    values = sum(prod(tensors.shape(name)) for name in tensors.names())
    table = {EMBEDDING, subject.config.head_name}
    trained = sum(prod(tensors.shape(name)) for name in tensors.names() if name not in table)
    if method == "calibrated" and trained > TRAINED_WEIGHTS:
        method = "layerwise"
    needs = memory_needs(subject, targets, certify, PROCESS)
    seconds = _TARGET_SECONDS if certify == "full" else _IDENTITY_SECONDS
    per_million = _QUANTISE_SECONDS[method] + sum(seconds[target] for target in targets)
    return ExportCost(max(needs.values()), 5 + per_million * values / 1e6)
