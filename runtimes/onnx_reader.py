"""Reading the weights and constants of a finished ONNX file back, as the graph uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.config import EMBEDDING, POSITIONS, Mlp, ModelConfig
from ..export.decoder import expert_names, fused_name, mlp_names
from ..export.inventory import take_inventory
from ..export.rope import rotary_tables
from ..export.shapes import tensor_shapes
from ..quantize.cache import FP32, INT8_CHANNEL, PARTS, scale_name
from ..quantize.store import CanonicalTensor, unpack_int4
from ..quantize.tensor import QuantizedTensor
from .onnx_session import MODEL_FILE
from .target import ReadBack

CACHE_SCALES_AT = 12  # the place of the keys' scales among GroupQueryAttention's inputs; the values' follow
_FLOAT, _INT8 = 1, 3  # TensorProto.DataType
_DTYPES = {1: np.float32, 2: np.uint8, 7: np.int64, 10: np.float16}  # TensorProto.DataType


class OnnxWeights:
    """The canonical weights of an ONNX file, found by following each operator's inputs to the bytes it uses."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Open the file; raises InputError if an operator that the decoder needs is not in it."""
        self._folder = folder
        self._graph = _load_graph(folder)
        self._nodes = {node.name: node for node in self._graph.node}
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._producers = {output: node for node in self._graph.node for output in node.output if output}
        self._shapes = tensor_shapes(config)
        self._places = self._find_places(config)

    def _find_places(self, config: ModelConfig) -> dict[str, tuple[Any, int, int, str]]:
        """Name -> (its operator, first row, row behind the last, role)."""
        inventory = take_inventory(config)
        places: dict[str, tuple[Any, int, int, str]] = {}
        for layer, features in enumerate(config.layers):
            mixture = self._nodes.get(f"model.layers.{layer}.mlp")
            if features.mlp.experts is not None and mixture is not None:
                places |= _expert_places(mixture, layer, features.mlp)
        for names in inventory.linears:
            if names[0] in places:
                continue
            fused = self._nodes.get(f"{fused_name(names)}.output")
            if fused is not None and fused.op_type == "Concat":  # the parts have different formats
                groups: list[tuple[str, ...]] = [(name,) for name in names]
            else:
                groups = [names]
            for group in groups:
                places |= self._linear_places(group)
        for name in inventory.weights:
            if name not in places:
                stem, _, part = name.rpartition(".")
                role = "positions" if name == POSITIONS else "norm" if part == "weight" else "norm bias"
                places[name] = (self._node(stem), 0, self._shapes[name][0], role)
        places[EMBEDDING] = (self._node(EMBEDDING.removesuffix(".weight")), 0, config.vocab_size, "table")
        if config.tie_word_embeddings:
            head = self._node(f"{fused_name((EMBEDDING,))}.output")
            places["lm_head.weight"] = (head, 0, config.vocab_size, "linear")
        return places | self._cache_scale_places(config)

    def _cache_scale_places(self, config: ModelConfig) -> dict[str, tuple[Any, int, int, str]]:
        """As ``_find_places``: (the attention, which of its inputs, 0, role)."""
        places = {}
        for layer in range(len(config.layers)):
            node = self._node(f"model.layers.{layer}.self_attn")
            for place, part in enumerate(PARTS, CACHE_SCALES_AT):
                if len(node.input) > place and node.input[place]:
                    places[scale_name(layer, part)] = (node, place, 0, "cache scales")
        return places

    def _read_expert(self, node: Any, expert: int, step: int, part: str) -> QuantizedTensor:
        """An expert's weight: every ``step``-th row from the ``start``-th, of the first or the second product."""
        which, offset = part.split()
        codes, scales = (node.input[index] for index in ((2, 3) if which == "gate_up" else (5, 6)))
        rows = slice(int(offset), None, step)
        packed = np.ascontiguousarray(self._read(codes)[expert][rows])
        return QuantizedTensor(unpack_int4(packed), np.ascontiguousarray(self._read(scales)[expert][rows]), 4)

    def _linear_places(self, names: tuple[str, ...]) -> dict[str, tuple[Any, int, int, str]]:
        node = self._node(f"{fused_name(names)}.output")
        places, start = {}, 0
        for name in names:
            stop = start + self._shapes.get(name, (0,))[0]
            places[name] = (node, start, stop, "linear")
            bias = name.removesuffix("weight") + "bias"
            if self._bias_tensor(node) is not None:
                places[bias] = (node, start, stop, "bias")
            start = stop
        return places

    def _node(self, name: str) -> Any:
        if name not in self._nodes:
            raise InputError(f"{self._folder / MODEL_FILE}: it has no operator named {name}; it is not a file of ours")
        return self._nodes[name]

    def _bias_tensor(self, node: Any) -> str | None:
        """The initializer of a linear's bias: an input of MatMulNBits, or of the Add behind a plain product."""
        if node.op_type == "MatMulNBits":
            return node.input[5] if len(node.input) > 5 and node.input[5] else None
        biased = self._nodes.get(node.name.removesuffix(".output") + ".biased")
        return None if biased is None else biased.input[1]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> CanonicalTensor:
        if name not in self._places:
            raise KeyError(name)
        with readable(self._folder):
            return self._get(*self._places[name])

    def _get(self, node: Any, start: int, stop: int, role: str) -> CanonicalTensor:
        if role == "norm":
            return self._read(node.input[2 if node.op_type.startswith("Skip") else 1])
        if role.startswith(("gate_up", "down")):
            return self._read_expert(node, start, stop, role)
        if role == "norm bias":
            return self._read(node.input[2])
        if role == "cache scales":
            return self._read(node.input[start]).reshape(-1)
        if role == "positions":
            return self._read(self._producers[node.input[1]].input[0])
        if role == "bias":
            return self._read(str(self._bias_tensor(node)))[start:stop]
        if role == "table":
            return self._read_table(node)
        if node.op_type == "MatMulNBits":
            return self._read_quantized(node.input[1], node.input[2], node, slice(start, stop))
        return self._read(self._stored(node.input[1]))[start:stop]

    def _read_table(self, node: Any) -> CanonicalTensor:
        if node.op_type == "GatherBlockQuantized":
            return self._read_quantized(node.input[0], node.input[2], node, slice(None))
        return self._read(node.input[0])

    def _stored(self, name: str) -> str:
        """The initializer behind a value: itself, or what a Cast widens."""
        node = self._producers.get(name)
        return name if node is None else node.input[0]

    def _read_quantized(self, codes: str, scales: str, node: Any, rows: slice) -> QuantizedTensor:
        attributes = _attributes(node)
        bits, block = int(attributes["bits"]), int(attributes["block_size"])
        packed = self._read(codes)[rows]
        packed = packed.reshape(packed.shape[0], -1)
        unpacked = unpack_int4(packed) if bits == 4 else (packed ^ np.uint8(128)).view(np.int8)
        columns = int(attributes["K"]) if "K" in attributes else int(unpacked.shape[1])
        return QuantizedTensor(
            unpacked[:, :columns], _group_scales(self._read(scales)[rows], columns, block, bits), bits
        )

    def _read(self, name: str) -> NDArray[Any]:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise InputError(f"{self._folder / MODEL_FILE}: {name} is not among its tensors")
        return _read_tensor(self._folder, tensor)

    def constants(self) -> Mapping[str, float]:
        """Epsilons, scales and parameters of the graph's operators, by the names of ``export.inventory``."""
        found: dict[str, float] = {}
        for node in self._graph.node:
            attributes = _attributes(node)
            if node.op_type in _NORMS:
                found[f"{node.name}.weight:epsilon"] = attributes["epsilon"]
            elif node.op_type == "GroupQueryAttention":
                found |= _attention_constants(node.name, attributes)
            elif node.op_type == "Mul" and node.name.endswith(".scaled"):
                found[f"{node.name.removesuffix('.scaled')}:scale"] = self._number(node.input[1])
            elif node.op_type == "Mul" and node.name.endswith(".capped"):
                found[f"{node.name.removesuffix('.capped')}:softcap"] = self._soft_cap(node)
            elif node.op_type == "QMoE":
                found |= _mixture_constants(node.name, attributes, len(node.input) > 14)
            elif node.op_type == "TopK":
                prefix = node.name.removesuffix(".router.values")
                found[f"{prefix}:active experts"] = self._number(node.input[1])
                scattered = self._producers[self._node(f"{prefix}.router.weights").input[2]]
                found[f"{prefix}:renormalise"] = scattered.op_type == "Div"
        return found

    def _number(self, name: str) -> float:
        return float(self._read(name).reshape(-1)[0])

    def _soft_cap(self, node: Any) -> float:
        """What the scores are multiplied with, if it is what they were divided by."""
        divided = self._producers[self._producers[node.input[0]].input[0]]
        return self._number(node.input[1]) if divided.input[1] == node.input[1] else float("nan")

    def rotations(self, config: ModelConfig) -> dict[str, float]:
        """Whether each layer rotates; nothing for one whose tables are not those of the configuration."""
        found: dict[str, float] = {}
        for layer, features in enumerate(config.layers):
            attention, name = features.attention, f"model.layers.{layer}.self_attn"
            node = self._node(name)
            tables = [self._read(given) for given in node.input[7:9] if given]
            rotates = bool(_attributes(node)["do_rotary"])
            wanted: Sequence[NDArray[np.float32]] = ()
            if attention.rope is not None and tables:
                wanted = rotary_tables(attention.rope, attention.head_dim, len(tables[0]))
            if rotates == bool(tables) and len(tables) == len(wanted) and all(map(np.array_equal, tables, wanted)):
                found[f"{name}:rotary tables"] = rotates
        return found

    def caches(self, config: ModelConfig) -> tuple[str, ...]:
        """The format of each layer's cache; what is none of ours is described."""
        inputs = {value.name: value.type.tensor_type.elem_type for value in self._graph.input}
        return tuple(self._cache_format(layer, inputs) for layer in range(len(config.layers)))

    def _cache_format(self, layer: int, inputs: Mapping[str, int]) -> str:
        node = self._node(f"model.layers.{layer}.self_attn")
        attributes = _attributes(node)
        kinds = [attributes.get(name, b"NONE").decode() for name in ("k_quant_type", "v_quant_type")]
        types = [inputs[node.input[place]] for place in (3, 4)]
        if kinds == ["NONE", "NONE"] and types == [_FLOAT, _FLOAT]:
            return FP32.name
        bits = attributes.get("kv_cache_bit_width", 8)
        if kinds == ["PER_CHANNEL", "PER_CHANNEL"] and types == [_INT8, _INT8] and bits == 8:
            return INT8_CHANNEL.name
        return f"{bits} bits {' and '.join(kinds)} in tensors of type {types[0]} and {types[1]}"

    def check_activations(self, config: ModelConfig) -> None:
        """Raise InputError unless each MLP bends its values as the configuration says: the kinds differ by little."""
        for layer, features in enumerate(config.layers):
            mlp = features.mlp
            if f"model.layers.{layer}.mlp" in self._nodes:  # a mixture in one operator, see ``constants``
                continue
            count = 0 if mlp.experts is None else mlp.experts.count
            groups = [expert_names(layer, expert, mlp) for expert in range(count)] or [mlp_names(layer, mlp)]
            for first, _ in groups:
                name = f"{fused_name(first)}.activated"
                node = self._node(name)
                kind = (node.op_type, _attributes(node).get("approximate", b"").decode())
                if kind != _ACTIVATIONS[mlp.activation]:
                    raise InputError(
                        f"{self._folder / MODEL_FILE}: {name} is {kind[0]}, the model has {mlp.activation}"
                    )


_ACTIVATIONS = {"silu": ("QuickGelu", ""), "gelu": ("Gelu", "none"), "gelu_tanh": ("Gelu", "tanh")}
_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization")


def _expert_places(node: Any, layer: int, mlp: Mlp) -> dict[str, tuple[Any, int, int, str]]:
    """As ``_find_places``, for weights of experts: (the mixture, expert, rows interleaved, part and offset)."""
    assert mlp.experts is not None
    places = {}
    for expert in range(mlp.experts.count):
        first, (last,) = expert_names(layer, expert, mlp)
        for offset, name in enumerate(first):
            places[name] = (node, expert, len(first), f"gate_up {offset}")
        places[last] = (node, expert, 1, "down 0")
    return places


def _mixture_constants(name: str, attributes: Mapping[str, Any], shares: bool) -> dict[str, float]:
    """NaN where the kernel would compute something else than a gated SiLU, or weigh by something else than shares."""
    silu = attributes["activation_type"] == b"swiglu" and attributes["swiglu_fusion"] == 1
    silu = silu and attributes["activation_alpha"] == 1 and attributes["activation_beta"] == 0
    silu = silu and "swiglu_limit" not in attributes
    renormalise = float(attributes["normalize_routing_weights"])
    return {
        f"{name}:active experts": float(attributes["k"]) if silu else float("nan"),
        f"{name}:renormalise": renormalise if bool(renormalise) != shares else float("nan"),
    }


def _attention_constants(name: str, attributes: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{name}:heads": attributes["num_heads"],
        f"{name}:kv_heads": attributes["kv_num_heads"],
        f"{name}:scale": attributes["scale"],
        f"{name}:window": attributes["local_window_size"],
        f"{name}:softcap": attributes["softcap"],
    }


def read_back(folder: Path, config: ModelConfig) -> ReadBack:
    """Weights and constants of ``folder``/model.onnx; raises InputError if it is damaged."""
    with readable(folder):
        weights = OnnxWeights(folder, config)
        weights.check_activations(config)
        return ReadBack(weights, {**weights.constants(), **weights.rotations(config)}, weights.caches(config))


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """What a damaged graph lacks or has too much of, as one line: protobuf reads much that is no graph of ours."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder / MODEL_FILE}: damaged ({reason}); export the model again") from error


def _load_graph(folder: Path) -> Any:
    import onnx

    try:
        return onnx.load(folder / MODEL_FILE, load_external_data=False).graph
    except Exception as error:  # protobuf's errors have no common class of their own
        raise InputError(f"{folder / MODEL_FILE}: not a readable ONNX file ({error})") from error


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return attributes


def _read_tensor(folder: Path, tensor: Any) -> NDArray[Any]:
    """A tensor's values, memory-mapped if they lie outside the graph."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location != TensorProto.EXTERNAL:
        inline: NDArray[Any] = numpy_helper.to_array(tensor)
        return inline
    place = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / place["location"]
    if Path(place["location"]).name != place["location"]:
        raise InputError(f"{folder / MODEL_FILE}: tensor {tensor.name} points outside the folder")
    try:
        return np.memmap(path, _DTYPES[tensor.data_type], "r", int(place["offset"]), tuple(tensor.dims))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it is too short for {tensor.name} ({error})") from error


def _group_scales(scales: NDArray[np.float32], columns: int, block: int, bits: int) -> NDArray[np.float32]:
    """Canonical scales: the blocks' own for 4 bits; for 8 bits a row's one scale if its blocks agree."""
    if bits == 8 and (scales == scales[:, :1]).all():
        return np.ascontiguousarray(scales[:, :1])
    return np.ascontiguousarray(scales[:, : -(-columns // block)])
