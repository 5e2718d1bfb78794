"""Names and layouts of checkpoints, turned into Llama's at the door: inside there is one layout.

What is undone here: other names, matrices stored as (in, out), fused projections, norms stored without their 1, and
rotations of a part of a head.
"""

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
from .config import EMBEDDING, POSITIONS, Attention, ModelConfig
from .families import FAMILIES, Layout

Array = NDArray[np.float32]

# What follows from the configuration, and masks: old files carry them.
_BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|self_attn\.(masked_)?bias)")
_BASE_MODEL_PREFIXES = ("embed_tokens.", "embed_positions.", "layers.", "norm.")
_FUSED = re.compile(r"\.(self_attn\.qkv_proj|mlp\.gate_up_proj)\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)")


def rename(name: str, layout: Layout) -> str | None:
    """A stored name as Llama has it; None for what is no weight."""
    dotted = f".{name}."
    for theirs, ours in layout.renames.items():
        dotted = dotted.replace(f".{theirs}.", f".{ours}.")
    name = dotted[1:-1]
    if name.startswith(_BASE_MODEL_PREFIXES):  # saved from a model without its head
        name = "model." + name
    return None if _BUFFERS.fullmatch(name) else name


@dataclass(frozen=True)
class Piece:
    """How a tensor is made of a stored one.

    shape   of what is made
    turned  the stored matrix is (in, out)
    rows    which rows of what is stored, turned first; None is all of them as they are
    offset  added to the values
    """

    source: str
    shape: tuple[int, ...]
    turned: bool = False
    rows: NDArray[np.int64] | None = None
    offset: float = 0.0


class NormalisedCheckpoint:
    """A Checkpoint in Llama's layout over one whose names are Llama's already."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, layout: Layout) -> None:
        self._checkpoint = checkpoint
        self._pieces: dict[str, Piece] = {}
        for name in checkpoint.names():
            for made, piece in _pieces(name, checkpoint.shape(name), config, layout).items():
                self._pieces[made] = piece

    @property
    def config(self) -> Mapping[str, Any]:
        """See Checkpoint."""
        return self._checkpoint.config

    @property
    def files(self) -> Sequence[Path]:
        """See Checkpoint."""
        return self._checkpoint.files

    @property
    def changes(self) -> Sequence[str]:
        """See Checkpoint."""
        return self._checkpoint.changes

    @property
    def licence(self) -> str | None:
        """See Checkpoint."""
        return self._checkpoint.licence

    def names(self) -> Sequence[str]:
        """See Checkpoint."""
        return tuple(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._pieces[name].shape

    def kind(self, name: str) -> str:
        """How the file stores a tensor."""
        return self._checkpoint.kind(self._pieces[name].source)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """See Checkpoint."""
        piece = self._pieces[name]
        wanted = (np.arange(piece.shape[0]) if piece.rows is None else piece.rows)[start:stop]
        first, behind = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        if piece.turned:  # its rows are columns of the file
            values = self._checkpoint.read(piece.source).T[wanted]
        else:
            values = self._checkpoint.read(piece.source, first, behind)
            if not np.array_equal(wanted, np.arange(first, behind)):
                values = values[wanted - first]
        if piece.offset:
            values += np.float32(piece.offset)
        assert values.shape == (len(wanted), *piece.shape[1:]), (name, values.shape, piece.shape)
        return np.ascontiguousarray(values)

    def stored_codes(self, name: str) -> QuantizedTensor | None:
        """See Checkpoint."""
        return None

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """See Checkpoint."""
        return self._checkpoint.tokenizer_files()


def normalise(checkpoint: Checkpoint, config: ModelConfig) -> Checkpoint:
    """The checkpoint in Llama's layout: itself, if it is in it."""
    layout = FAMILIES[config.model_type].layout
    partial = any(layer.attention.rope is not None and layer.attention.rope.rotated for layer in config.layers)
    if layout == Layout() and not partial and not any(_FUSED.search(name) for name in checkpoint.names()):
        return checkpoint
    return NormalisedCheckpoint(checkpoint, config, layout)


def _pieces(name: str, shape: tuple[int, ...], config: ModelConfig, layout: Layout) -> dict[str, Piece]:
    """What a stored tensor becomes."""
    if name.endswith("norm.weight"):
        return {name: Piece(name, shape, offset=layout.norm_offset)}
    found = _LAYER.fullmatch(name)
    if found is None or name in (EMBEDDING, POSITIONS) or int(found[1]) >= len(config.layers):
        return {name: Piece(name, shape)}
    turned = layout.transposed and len(shape) == 2
    rows = shape[1] if turned else shape[0]
    columns = (shape[0],) if turned else shape[1:]
    layer, stem, ending = config.layers[int(found[1])], found[2], found[3]
    prefix = f"model.layers.{found[1]}."
    if stem == "self_attn.qkv_proj":
        parts = _qkv_rows(layer.attention, layout)
    elif stem == "mlp.gate_up_proj":
        width = layer.mlp.width
        parts = {"mlp.gate_proj": np.arange(width), "mlp.up_proj": np.arange(width, 2 * width)}
    else:
        parts = {stem: np.arange(rows)}
    if stem in ("self_attn.qkv_proj", "mlp.gate_up_proj") and sum(map(len, parts.values())) != rows:
        raise InputError(
            f"tensor {name} has {rows} rows, the configuration wants {sum(map(len, parts.values()))}; "
            "config.json and the weights do not belong together"
        )
    made = {}
    for part, chosen in parts.items():
        if part in ("self_attn.q_proj", "self_attn.k_proj") and len(chosen) % layer.attention.head_dim == 0:
            chosen = chosen[_rotation_order(layer.attention, len(chosen))]
        made[f"{prefix}{part}.{ending}"] = Piece(name, (len(chosen), *columns), turned, _unless_all(chosen, rows))
    return made


def _unless_all(chosen: NDArray[np.int64], rows: int) -> NDArray[np.int64] | None:
    return None if np.array_equal(chosen, np.arange(rows)) else chosen


def _qkv_rows(attention: Attention, layout: Layout) -> dict[str, NDArray[np.int64]]:
    """Rows of a fused projection that are the queries', the keys' and the values'."""
    widths = attention.query_width, attention.kv_width, attention.kv_width
    names = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
    if not layout.qkv_per_head:
        edges = np.cumsum((0, *widths))
        return {name: np.arange(edges[i], edges[i + 1]) for i, name in enumerate(names)}
    # (heads, 3, head_dim)
    rows = np.arange(sum(widths)).reshape(attention.heads, 3, attention.head_dim)
    return {name: rows[:, i].reshape(-1) for i, name in enumerate(names)}


def _rotation_order(attention: Attention, rows: int) -> NDArray[np.int64]:
    """The order of a query's or key's rows in which a rotation of part of a head is one of the whole.

    Column i turns with column i + rotated / 2, and must turn with i + head_dim / 2. Those that do not turn fill both
    halves from behind; q.k does not change if both are sorted the same way.
    """
    order = np.arange(rows)
    if attention.rope is None or attention.rope.rotated is None:
        return order
    width, half = attention.head_dim, attention.rope.rotated // 2
    resting = np.arange(2 * half, width)
    middle = len(resting) // 2
    head = np.concatenate([np.arange(half), resting[:middle], np.arange(half, 2 * half), resting[middle:]])
    return order.reshape(-1, width)[:, head].reshape(-1)
