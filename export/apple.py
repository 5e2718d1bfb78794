"""What Apple targets of a decoder have in common, whatever the file format: names, shapes, functions, precision.

Names follow huggingface/swift-transformers (``LanguageModel.Keys`` and ``LanguageModelWithStatefulKVCache`` in
Sources/Models/LanguageModel.swift, and Examples/Mistral7B/export.py), so that Swift code written for it finds what it
looks for: inputs ``inputIds`` int32 (1, tokens) and ``causalMask`` fp16, output ``logits`` of rank 3, states
``keyCache`` and ``valueCache`` with all layers in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..quantize.store import Weights
from ..quantize.tensor import QuantizedTensor
from .config import ModelConfig
from .rope import Rope

TOKENS = "inputIds"
CAUSAL_MASK = "causalMask"
POSITION = "position"
LOGITS_INDEX = "logitsIndex"
LOGITS = "logits"
KEY_CACHE = "keyCache"
VALUE_CACHE = "valueCache"

# Metadata under which swift-transformers looks for the name of the tokenizer's repository (LanguageModel.modelName).
HUB_ID = "co.huggingface.exporters.name"

# Added to the score of a token that must not be seen. Finite, and its sum with a score above -16368 stays finite too:
# nobody knows what a device makes of infinities. It hides a token unless scores lie 49152 apart, near fp16's own end.
HIDDEN = -49152.0

# The Neural Engine refuses states whose last dimensions are no multiple of this (apple/coremltools issue 2631).
_STATE_MULTIPLE = 32
PREFILL_TOKENS = 64


@dataclass(frozen=True)
class Function:
    """One entry point of a package.

    tokens   how many tokens a call takes; None is any number, at a price: flexible shapes keep a graph off the
             Neural Engine
    one_row  whether the caller chooses the one token whose logits it wants (``logitsIndex``); otherwise all are given
    """

    name: str
    tokens: int | None
    one_row: bool = False


def fixed_functions(prefill_tokens: int = PREFILL_TOKENS) -> tuple[Function, ...]:
    """The entry points for phones. The first is the default."""
    return Function("decode", 1), Function("prefill", prefill_tokens, one_row=True)


# What swift-transformers loads: one function, the default, that takes any number of tokens.
FLEXIBLE = Function("main", None)

# The sets of functions that a user can choose between.
FUNCTIONS: Mapping[str, tuple[Function, ...]] = {"fixed": fixed_functions(), "flexible": (FLEXIBLE,)}


def cache_slots(context: int, functions: Sequence[Function]) -> int:
    """Tokens for which the cache has room: the context, rounded up to what the Neural Engine accepts.

    One more where swift-transformers may call: its masks are one token wider than the conversation.
    """
    needed = context + any(function.tokens is None for function in functions)
    return -(-needed // _STATE_MULTIPLE) * _STATE_MULTIPLE


def state_shape(config: ModelConfig, slots: int) -> tuple[int, int, int, int]:
    """Shape of each of the two caches: (layers, kv_heads, slots, head_dim); kv_heads are those of the widest layer.

    swift-transformers' example has a batch dimension of 1 behind the layers; nobody reads it, and rank 4 is what the
    Neural Engine works in.
    """
    attentions = [layer.attention for layer in config.layers]
    kv_heads = max(attention.kv_heads for attention in attentions)
    return len(attentions), kv_heads, slots, attentions[0].head_dim


def rotary_names(config: ModelConfig) -> dict[tuple[Rope, int], tuple[str, str]]:
    """What the tables of each rotation are called: (rotation, head_dim) -> (cosines, sines)."""
    names: dict[tuple[Rope, int], tuple[str, str]] = {}
    for layer in config.layers:
        attention = layer.attention
        if attention.rope is not None and (attention.rope, attention.head_dim) not in names:
            which = f"{len(names)}_" if names else ""
            names[attention.rope, attention.head_dim] = f"rotary_{which}cosines", f"rotary_{which}sines"
    return names


def identifier(name: str) -> str:
    """A checkpoint's name as MIL and Swift accept it."""
    return re.sub(r"\W", "_", name)


def computes_in_fp32(weights: Weights) -> bool:
    """Whether the recipe asks for fp32 arithmetic: canonical norms are float32 then, and float16 in every other."""
    norm = weights["model.norm.weight"]
    return not isinstance(norm, QuantizedTensor) and norm.dtype == np.float32


def root_of_epsilon(epsilon: float, dtype: type) -> NDArray[np.float16] | NDArray[np.float32]:
    """sqrt(epsilon) as a norm stores it: 1e-6 itself would lose 1 % in fp16, its root loses nothing that matters."""
    root: NDArray[np.float16] | NDArray[np.float32] = np.array(np.sqrt(epsilon), dtype)
    return root


def epsilon_of_root(root: NDArray[np.float16] | NDArray[np.float32]) -> float:
    """The shortest decimal whose root is stored as ``root``: what ``root_of_epsilon`` was given, if it was short."""
    value = float(root) ** 2
    for digits in range(17):
        epsilon = float(f"{value:.{digits}e}")
        if np.array(np.sqrt(epsilon), root.dtype) == root:
            return epsilon
    return value


def package_metadata(config: ModelConfig, context: int, blockwise: bool, given: Mapping[str, str]) -> dict[str, str]:
    """What a package says about itself: user-defined metadata, strings only.

    ``pocketlm.compute_units`` is the MLComputeUnits to ask for: the Neural Engine has no weights in blocks, and is
    reported to compute wrong results with them (apple/coremltools issue 2510, apple/coreai-models issue 279).
    """
    return {
        "pocketlm.version": __version__,
        "pocketlm.context": str(context),
        "pocketlm.vocabulary": str(config.vocab_size),
        "pocketlm.compute_units": "cpuAndGPU" if blockwise else "all",
        **given,
    }
