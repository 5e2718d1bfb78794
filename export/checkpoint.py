"""What a reader of model files offers, and which reader a path needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..quantize.tensor import QuantizedTensor


class Checkpoint(Protocol):
    """A model's files: opened, memory-mapped, normalised to Hugging Face's names and layouts, but not loaded."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json (rebuilt, where the format has none)."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The files that the weights come from."""
        ...

    @property
    def changes(self) -> Sequence[str]:
        """What was done to the weights of the files, a line each: adapters that were merged."""
        ...

    @property
    def licence(self) -> str | None:
        """The model's licence as its files state it (``apache-2.0``), if they do."""
        ...

    def names(self) -> Sequence[str]:
        """The names of all tensors, as Hugging Face has them."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def kind(self, name: str) -> str:
        """How the file stores a tensor: F32, F16, BF16, Q4_0, ..."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of one tensor, or all of it, as a new float32 array.

        Raises InputError if the file ends early or a value is not finite.
        """
        ...

    def stored_codes(self, name: str) -> QuantizedTensor | None:
        """A matrix that the file holds in canonical form already, if it does and nothing was changed in it."""
        ...

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Content of tokenizer.json, and of tokenizer_config.json, chat_template.jinja, generation_config.json."""
        ...
