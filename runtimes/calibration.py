"""The calibration text: what ships, what a user gives, and its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.config import ModelConfig
from ..export.inventory import take_inventory
from .tokenizer import Tokenizer

SEQUENCES = 48
LENGTH = 512  # tokens of a sequence, or the model's longest context if that is less
TUNING_SEQUENCES = 384
TUNING_LENGTH = 256
CACHE_SEQUENCES, CACHE_LENGTH = 16, 128  # on SmolLM2-135M, sequences of 512 tokens gave scales that are no better
# Recipes that are not "tuned" train no model with more weights in its linears: training holds all of it in memory.
TRAINED_WEIGHTS = 500_000_000
_ACTIVATION_BYTES = 1 << 30  # of one linear's output in float32, the source's and the quantised model's
_FEWEST = 8
SHORTEST = 64  # tokens that a text must have at least


def read_calibration_text(path: Path | None) -> str:
    """The text at ``path``, or the one that ships: four kinds of English in the public domain.

    Raises InputError if the file cannot be read.
    """
    return read_text_file(Path(__file__).parent / "data" / "calibration.txt" if path is None else path)


def read_text_file(path: Path) -> str:
    """The content of a user's text file; raises InputError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a text in UTF-8 ({error})") from error


class Shapes(Protocol):
    """What is asked of a checkpoint."""

    def shape(self, name: str) -> tuple[int, ...]:
        """(out, in) of a matrix."""
        ...


def calibration_sequences(checkpoint: Shapes, config: ModelConfig) -> int:
    """How many calibration sequences may be in memory at once; the widest output of a linear decides."""
    groups = [names for names in take_inventory(config).linears if names[0] != config.head_name]
    widest = max(sum(checkpoint.shape(name)[0] for name in names) for names in groups)
    return max(_FEWEST, min(SEQUENCES, _ACTIVATION_BYTES // (2 * 4 * LENGTH * widest)))


def cut_sequences(
    text: str, tokenizer: Tokenizer, longest: int, count: int = SEQUENCES, length: int = LENGTH
) -> NDArray[np.int64]:
    """Token ids (sequences, tokens) of pieces spread evenly over a text, each started as the model's texts are.

    At most ``count`` sequences of ``length`` tokens, as many as the text has without overlap.
    Raises InputError if it has fewer than SHORTEST tokens.
    """
    ids, beginning = tokenizer.encode(text, special=False), tokenizer.beginning()
    if len(ids) < SHORTEST:
        raise InputError(f"a text of {len(ids)} tokens is too short to learn from; give {SHORTEST} or more")
    piece = min(length, longest, len(ids)) - len(beginning)
    count = min(count, len(ids) // piece)
    starts = np.linspace(0, len(ids) - piece, count).astype(int)
    return np.array([[*beginning, *ids[start : start + piece]] for start in starts], np.int64)
