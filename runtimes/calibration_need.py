"""How much memory it takes to run a model over a text before it is written: calibration, training, sensitivities.

All of it is known beforehand: so many tokens are run through one layer at a time, and what a layer holds is arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from ..export.config import EMBEDDING, ModelConfig
from ..export.inventory import take_inventory
from .calibration import TRAINED_WEIGHTS, TUNING_LENGTH, TUNING_SEQUENCES

if TYPE_CHECKING:
    from .memory_need import Subject

_FLOAT = 4  # bytes
# What the allocator keeps between layers of other shapes, and threads of libraries: for a model of two layers of 256
# columns, 0.4 GB more than the arithmetic was measured, 0.6 with --bits.
_SLACK = 768 << 20
_KEPT = 12  # weights in float32 that two models keep at a time (export/batched.py), and copies under way
_MOMENTS = 12  # squares of the widest input: sums, their factors, and what is solved with them
_SENSITIVITY_TOKENS = 4 * 128  # that each variant is measured on (budget.py)
_TEACHER_TOKENS = 32 * TUNING_LENGTH  # that the source reads together (export/tune.py)
_TRAINED_BYTES = 3  # for a weight whose scale is trained: its code, the scale's change, gradient and moments
_SAVED = 6  # of a token's values that training keeps for the way back, over those alive at once


def calibration_needs(subject: Subject, budget: bool) -> Mapping[str, int]:
    """Phase -> bytes beyond those of a process that has torch; nothing where no text is read."""
    method, trained = subject.recipe.method, _trained_weights(subject)
    needs = {}
    if budget:
        needs["measure sensitivities"] = _sensitivities(subject)
    if method != "rtn":
        needs[f"calibrate {subject.recipe.name}"] = _calibration(subject)
    if method == "tuned" or (method == "calibrated" and trained <= TRAINED_WEIGHTS):
        needs["train scales and norms"] = _training(subject, trained)
    return needs


def _calibration(subject: Subject) -> int:
    """Two models' values for all tokens, a layer's weights and sums, and the embedding, which is read twice."""
    config = subject.config
    values = _FLOAT * 2 * subject.calibration_tokens * _values(config)
    inner = max(max(subject.checkpoint.shape(name)[1] for name in names) for names in _groups(config))
    return values + _FLOAT * (_MOMENTS * inner**2 + _KEPT * _widest(subject) + 2 * _table(subject)) + _SLACK


def _training(subject: Subject, trained: int) -> int:
    """The head twice, what is trained, what the source said, and the values of a sequence that are kept."""
    config = subject.config
    said = TUNING_SEQUENCES * TUNING_LENGTH * config.hidden_size
    teacher = _TEACHER_TOKENS * _values(config) + _KEPT * _widest(subject)
    kept = TUNING_LENGTH * (_SAVED * _values(config) * config.num_hidden_layers) + trained
    return _TRAINED_BYTES * trained + _FLOAT * (said + max(teacher, kept) + 2 * _table(subject)) + _SLACK


def _sensitivities(subject: Subject) -> int:
    """A variant for each group of linears, all of them side by side."""
    config = subject.config
    variants = 1 + len(_groups(config))
    logits = 4 * _SENSITIVITY_TOKENS * config.vocab_size
    values = variants * _SENSITIVITY_TOKENS * _values(config)
    return _FLOAT * (values + logits + _KEPT * _widest(subject) + 2 * _table(subject)) + _SLACK


def _values(config: ModelConfig) -> int:
    """Of a token, alive at once in the widest layer: a hidden state, and an MLP's input, output and difference."""
    return max(
        config.hidden_size + max(2 * layer.attention.query_width + 2 * layer.attention.kv_width, 4 * layer.mlp.width)
        for layer in config.layers
    )


def _groups(config: ModelConfig) -> list[tuple[str, ...]]:
    return [names for names in dict.fromkeys(take_inventory(config).linears) if names[0] != config.head_name]


def _widest(subject: Subject) -> int:
    """Values of the largest matrix of a layer."""
    return max(prod(subject.checkpoint.shape(name)) for names in _groups(subject.config) for name in names)


def _table(subject: Subject) -> int:
    """Values of the larger of embedding and head."""
    return max(prod(subject.checkpoint.shape(name)) for name in {EMBEDDING, subject.config.head_name})


def _trained_weights(subject: Subject) -> int:
    return sum(prod(subject.checkpoint.shape(name)) for names in _groups(subject.config) for name in names)
