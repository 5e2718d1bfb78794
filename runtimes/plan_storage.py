"""How many bytes of tensors an artifact holds: what the writers write, as arithmetic over shapes and formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from ..export.apple import PREFILL_TOKENS, cache_slots, fixed_functions, rotary_names
from ..export.caches import target_cache
from ..export.config import EMBEDDING, POSITIONS, ModelConfig
from ..export.decoder import expert_names
from ..export.inventory import take_inventory
from ..export.shapes import tensor_shapes
from ..quantize.cache import PARTS
from ..quantize.recipe import Format, Recipe

ONNX_INLINE_BYTES = 1024  # as in export/onnx_file.py: smaller tensors stand in the graph
_ONNX_PAGE = 4096
_ONNX_BLOCKS = (16, 32, 64, 128)
_PTE_SEGMENT, _PTE_TENSOR = 128, 64
_MIL_BLOB = 64  # alignment of a blob, and the size of the header in front of it


@dataclass(frozen=True)
class Stored:
    """A model as it will be stored.

    config   read for ``context`` tokens
    biases   the linears (by the names of their weights) that have one
    shapes   of all tensors but biases, by name
    formats  of the matrices
    cache    "float" or "int8", see ``export.caches``
    """

    config: ModelConfig
    recipe: Recipe
    context: int
    biases: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, Format]
    cache: str = "float"

    @property
    def dense_bytes(self) -> int:
        """Bytes of a value of norms and biases in canonical form."""
        return 4 if self.recipe.linear.kind == "fp32" else 2

    @property
    def vectors(self) -> list[int]:
        """Values of each norm, in the order in which the decoder uses them."""
        return [prod(shape) for name, shape in self.shapes.items() if len(shape) == 1]


def describe_storage(
    config: ModelConfig, recipe: Recipe, context: int, biases: frozenset[str], cache: str = "float"
) -> Stored:
    """The shapes and formats of a model's tensors under a recipe."""
    shapes = tensor_shapes(config)
    formats = {name: recipe.format_of(name) for name, shape in shapes.items() if len(shape) == 2}
    return Stored(config, recipe, context, biases, shapes, formats, cache)


def code_bytes(form: Format, rows: int, columns: int) -> int:
    """Bytes of a matrix without its scales."""
    if form.bits is None:
        return rows * columns * (4 if form.kind == "fp32" else 2)
    return rows * columns * form.bits // 8


def scale_count(form: Format, rows: int, columns: int) -> int:
    """Scales of a quantised matrix."""
    return rows * (columns // form.group if form.group else 1)


def weight_values(stored: Stored) -> int:
    """Parameters, each once."""
    return sum(prod(shape) for shape in stored.shapes.values()) + sum(stored.shapes[name][0] for name in stored.biases)


def onnx_tensors(stored: Stored) -> Iterator[int]:
    """Bytes of each tensor of model.onnx and model.onnx.data, in the order in which they are written (about)."""
    config, tables = stored.config, set()
    for name in (EMBEDDING, POSITIONS):
        if name in stored.shapes:
            rows, columns = stored.shapes[name]
            form = Format("fp32") if name == POSITIONS else stored.formats[name]
            tables.add(name)
            yield from _onnx_matrix(form, rows, columns)
    for table in _rotary_rows(config):
        yield from (stored.context * table * 4,) * 2
    if target_cache("onnx", stored.cache).static_scales:
        for layer in config.layers:
            yield from (layer.attention.kv_width * 4,) * len(PARTS)
    yield from (count * 4 for count in stored.vectors)
    mixed = mixture_layers(stored)
    for mixture in mixed:
        yield from _qmoe_tensors(stored, mixture)
    for names in take_inventory(config).linears:
        if names[0] in tables or any(f"layers.{layer}.mlp.experts." in names[0] for layer in mixed):
            continue
        forms = {stored.formats[name] for name in names}
        for group in [names] if len(forms) == 1 else [(name,) for name in names]:
            rows = sum(stored.shapes[name][0] for name in group)
            yield from _onnx_matrix(stored.formats[group[0]], rows, stored.shapes[group[0]][1])
            if stored.biases & set(group):
                yield rows * 4


def _onnx_matrix(form: Format, rows: int, columns: int) -> tuple[int, ...]:
    """As in export/to_onnx.py: codes in whole blocks, and float32 scales for each block."""
    if form.bits is None:
        return (code_bytes(form, rows, columns),)
    block = form.group or (columns if columns in _ONNX_BLOCKS else min(columns & -columns, 128))
    blocks = -(-columns // block)
    return rows * blocks * block * form.bits // 8, rows * blocks * 4


def mixture_layers(stored: Stored) -> list[int]:
    """Layers whose experts become one operator in ONNX: those that export/onnx_experts.py finds to fit."""
    layers = []
    for index, layer in enumerate(stored.config.layers):
        mlp = layer.mlp
        if mlp.experts is None or not mlp.gated or mlp.activation != "silu":
            continue
        names = [n for e in range(mlp.experts.count) for part in expert_names(index, e, mlp) for n in part]
        forms = {stored.formats[name] for name in names}
        if len(forms) == 1 and next(iter(forms)).kind == "int4" and not stored.biases & set(names):
            layers.append(index)
    return layers


def _qmoe_tensors(stored: Stored, layer: int) -> Iterator[int]:
    mlp = stored.config.layers[layer].mlp
    assert mlp.experts is not None
    for names in expert_names(layer, 0, mlp):
        form, columns = stored.formats[names[0]], stored.shapes[names[0]][1]
        rows = mlp.experts.count * sum(stored.shapes[name][0] for name in names)
        yield code_bytes(form, rows, columns)
        yield scale_count(form, rows, columns) * 4


def _rotary_rows(config: ModelConfig) -> list[int]:
    """head_dim / 2 of each distinct rotation."""
    kinds = {
        (layer.attention.rope, layer.attention.head_dim) for layer in config.layers if layer.attention.rope is not None
    }
    return [head_dim // 2 for _, head_dim in kinds]


def onnx_data_bytes(tensors: list[int]) -> int:
    """Bytes of model.onnx.data, where every tensor begins on a page."""
    outside = [size for size in tensors if size >= ONNX_INLINE_BYTES]
    return sum(_padded(size, _ONNX_PAGE) for size in outside[:-1]) + sum(outside[-1:])


def executorch_data_bytes(stored: Stored) -> int:
    """Bytes of the segments of model.pte: XNNPACK's weights by name, and the program's constants."""
    config, segments, constants = stored.config, [], []
    inventory = take_inventory(config)
    for name in dict.fromkeys(name for names in inventory.linears for name in names):
        rows, columns = stored.shapes[name]
        form = stored.formats[name]
        if name != EMBEDDING or form.kind == "int4":  # a tied table of other formats is the embedding's own
            segments.append(code_bytes(form, rows, columns))
            if form.bits is not None:
                segments.append(scale_count(form, rows, columns) * (2 if form.bits == 4 else 4))
        if name in stored.biases:
            segments.append(rows * 4)
    rows, columns = stored.shapes[EMBEDDING]
    form = stored.formats[EMBEDDING]
    constants += [code_bytes(form, rows, columns)]
    constants += [] if form.bits is None else [scale_count(form, rows, columns) * 4]
    constants += [count * 4 for count in stored.vectors]
    if POSITIONS in stored.shapes:
        constants.append(prod(stored.shapes[POSITIONS]) * 4)
    constants += [stored.context * 2 * half * 4 for half in _rotary_rows(config) for _ in range(2)]
    masks = {layer.attention.window for layer in config.layers if layer.attention.window is not None}
    masks |= {0} if any(layer.attention.softcap for layer in config.layers) else set()
    constants += [stored.context * 4] * (2 * len(masks))
    return sum(_padded(size, _PTE_SEGMENT) for size in segments) + sum(_padded(size, _PTE_TENSOR) for size in constants)


def coreml_data_bytes(stored: Stored) -> int:
    """Bytes of weight.bin: each blob behind a header, all aligned; activations decide the width of scales and norms."""
    config, blobs, widths = stored.config, [], set()
    wide = stored.dense_bytes
    for name, form in stored.formats.items():
        rows, columns = stored.shapes[name]
        blobs.append(code_bytes(form, rows, columns))
        if form.bits is not None:
            blobs.append(scale_count(form, rows, columns) * wide)
        if name in stored.biases:
            blobs.append(rows * wide)
        elif name not in (EMBEDDING, POSITIONS) or name == config.head_name:
            widths.add((rows, 4 if form.kind == "fp32" else 2))
    blobs += [rows * size for rows, size in widths]  # the zeros that stand where a linear has no bias
    blobs += [count * wide for count in stored.vectors]
    slots = cache_slots(stored.context, fixed_functions())
    for _, head_dim in rotary_names(config):
        blobs += [slots * head_dim // 2 * 4] * 2
    blobs += [slots * 4, PREFILL_TOKENS * 4]  # places of the cache, and of a chunk's tokens
    return _MIL_BLOB + sum(_MIL_BLOB + _padded(size, _MIL_BLOB) for size in blobs)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
