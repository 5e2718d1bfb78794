"""LoRA adapters in PEFT's format, added to the weights as they are read: before anything is quantised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..quantize.tensor import QuantizedTensor
from .checkpoint import Checkpoint
from .families import FAMILIES, Layout
from .layouts import rename
from .reading import read_json_object
from .safetensors_reader import open_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_LARGEST_ALPHA = 1e9
_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

# Settings of PEFT that change what an adapter computes, with the values that are supported.
_PINNED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (False, None), "lora_bias": (False, None), "bias": ("none", None),
    "modules_to_save": (None, []), "target_parameters": (None, []), "trainable_token_indices": (None, {}),
    "use_qalora": (False, None), "alora_invocation_tokens": (None,), "megatron_config": (None,),
    "layer_replication": (None, []), "use_bdlora": (None, False), "arrow_config": (None,),
    # the other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something out of the base's own weights
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one matrix: scale * B @ A, turned if the base stores (in, out).

    a  (rank, in)
    b  (out, rank)
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the base's matrix as it is stored."""
        out, columns = self.b.shape[0], self.a.shape[1]
        return (columns, out) if self.turned else (out, columns)

    def add_to(self, weight: NDArray[np.float32], start: int) -> None:
        """Add it in place to rows of the base's matrix as it is stored, from row ``start`` on."""
        rows = slice(start, start + len(weight))
        product = (self.b @ self.a[:, rows]).T if self.turned else self.b[rows] @ self.a
        weight += np.float32(self.scale) * product


class AdaptedCheckpoint:
    """A Checkpoint whose matrices have adapters merged in."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        deltas: Mapping[str, Sequence[Delta]],
        files: Sequence[Path],
        changes: Sequence[str],
    ) -> None:
        self._checkpoint = checkpoint
        self.changes = changes
        self._deltas = deltas
        self._files = files

    @property
    def config(self) -> Mapping[str, Any]:
        """See Checkpoint."""
        return self._checkpoint.config

    @property
    def files(self) -> Sequence[Path]:
        """See Checkpoint. With those of the adapters."""
        return (*self._checkpoint.files, *self._files)

    @property
    def licence(self) -> str | None:
        """See Checkpoint. The base's: an adapter's own terms are for its user to look up."""
        return self._checkpoint.licence

    def names(self) -> Sequence[str]:
        """See Checkpoint."""
        return self._checkpoint.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._checkpoint.shape(name)

    def kind(self, name: str) -> str:
        """See Checkpoint."""
        return "F32" if name in self._deltas else self._checkpoint.kind(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See Checkpoint."""
        weight = self._checkpoint.read(name, start, stop)
        for delta in self._deltas.get(name, ()):
            delta.add_to(weight, start)
        return weight

    def stored_codes(self, name: str) -> QuantizedTensor | None:
        """See Checkpoint."""
        return None if name in self._deltas else self._checkpoint.stored_codes(name)

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """See Checkpoint."""
        return self._checkpoint.tokenizer_files()


def parse_adapter(given: str) -> tuple[Path, float]:
    """``DIR`` or ``DIR=WEIGHT``; the weight is 1 if it is not given."""
    folder, equals, weight = given.rpartition("=")
    if not equals or Path(given).is_dir():
        return Path(given), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"--adapter {given}: the weight must be a number, as in {folder}=0.5")
    return Path(folder), value


def merge_adapters(checkpoint: Checkpoint, adapters: Sequence[str]) -> Checkpoint:
    """The checkpoint with adapters (``DIR`` or ``DIR=WEIGHT`` each) merged in, as PEFT's merge does it.

    Raises InputError for another kind of adapter, or one that was trained for another model.
    """
    layout = FAMILIES[str(checkpoint.config["model_type"])].layout
    deltas: dict[str, list[Delta]] = {}
    files, changes = [], []
    for given in adapters:
        folder, weight = parse_adapter(given)
        for name, delta in _read_adapter(folder, weight, layout).items():
            _check_fits(folder, checkpoint, name, delta)
            deltas.setdefault(name, []).append(delta)
        files.append(folder / ADAPTER_WEIGHTS)
        changes.append(f"LoRA adapter {folder.name} was merged with weight {weight:g}")
    return AdaptedCheckpoint(checkpoint, deltas, files, changes)


def _read_adapter(folder: Path, weight: float, layout: Layout) -> dict[str, Delta]:
    """What an adapter adds, by the names that the base has after ``rename``."""
    if not (folder / _CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder}: is not an adapter; it needs {_CONFIG} and {ADAPTER_WEIGHTS}, as PEFT saves them")
    config = read_json_object(folder / _CONFIG)
    for key, allowed in _PINNED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise InputError(f"{folder}: {key} = {config[key]!r} is not supported; merge the adapter with PEFT first")
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for stored, values in open_tensors(folder / ADAPTER_WEIGHTS).items():
        found = _MATRIX.fullmatch(stored.removeprefix(_PREFIX))
        if found is None:
            raise InputError(f"{folder}: tensor {stored} is not a LoRA matrix; merge the adapter with PEFT first")
        halves.setdefault(found[1], {})[found[2]] = values
    deltas = {}
    for module, pair in halves.items():
        name = rename(f"{module}.weight", layout)
        if set(pair) != {"A", "B"} or name is None or not _fit_each_other(pair["A"], pair["B"]):
            raise InputError(f"{folder}: {module} lacks one of its two matrices, or they do not fit each other")
        scale = weight * _scaling(folder, config, module, pair["A"].shape[0])
        deltas[name] = Delta(pair["A"], pair["B"], scale, bool(config.get("fan_in_fan_out", False)))
    return deltas


def _fit_each_other(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.ndim == 2 and b.ndim == 2 and a.shape[0] == b.shape[1] > 0


def _scaling(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023); a pattern may give a module an alpha of its own."""
    alpha, patterns = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise InputError(f"{folder}: alpha_pattern must be an object, it is {patterns!r}")
    for pattern, value in patterns.items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(f"{folder}: alpha_pattern {pattern!r} is not a regular expression ({error})") from error
        if found:
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or not abs(alpha) <= _LARGEST_ALPHA:
        raise InputError(f"{folder}: lora_alpha must be a number, it is {alpha!r}")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _check_fits(folder: Path, checkpoint: Checkpoint, name: str, delta: Delta) -> None:
    if name not in set(checkpoint.names()):
        raise InputError(f"{folder}: it changes {name}, which the model does not have; is it for another model?")
    if checkpoint.shape(name) != delta.shape:
        raise InputError(
            f"{folder}: what it adds to {name} has the shape {list(delta.shape)}, the model's is "
            f"{list(checkpoint.shape(name))}; is it for another model?"
        )
