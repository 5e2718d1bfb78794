"""Reading the weights and constants of a finished ONNX file back, as the graph uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.config import EMBEDDING, ModelConfig
from ..export.decoder import fused_name
from ..export.inventory import take_inventory
from ..export.shapes import tensor_shapes
from ..quantize.store import CanonicalTensor, unpack_int4
from ..quantize.tensor import QuantizedTensor
from .onnx_session import MODEL_FILE
from .target import ReadBack

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
        for names in inventory.linears:
            fused = self._nodes.get(f"{fused_name(names)}.output")
            if fused is not None and fused.op_type == "Concat":  # the parts have different formats
                groups: list[tuple[str, ...]] = [(name,) for name in names]
            else:
                groups = [names]
            for group in groups:
                places |= self._linear_places(group)
        for name in inventory.weights:
            if name not in places:
                places[name] = (self._node(name.removesuffix(".weight")), 0, self._shapes[name][0], "norm")
        places[EMBEDDING] = (self._node(EMBEDDING.removesuffix(".weight")), 0, config.vocab_size, "table")
        if config.tie_word_embeddings:
            head = self._node(f"{fused_name((EMBEDDING,))}.output")
            places["lm_head.weight"] = (head, 0, config.vocab_size, "linear")
        return places

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
        """Epsilons and attention parameters of the graph's operators, by the names of ``export.inventory``."""
        found: dict[str, float] = {}
        for node in self._graph.node:
            attributes = _attributes(node)
            if node.op_type in ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
                found[f"{node.name}.weight:epsilon"] = attributes["epsilon"]
            if node.op_type == "GroupQueryAttention":
                found |= {
                    f"{node.name}:heads": attributes["num_heads"],
                    f"{node.name}:kv_heads": attributes["kv_num_heads"],
                    f"{node.name}:scale": attributes["scale"],
                    f"{node.name}:window": attributes["local_window_size"],
                    f"{node.name}:softcap": attributes["softcap"],
                }
        return found


def read_back(folder: Path, config: ModelConfig) -> ReadBack:
    """Weights and constants of ``folder``/model.onnx; raises InputError if it is damaged."""
    with readable(folder):
        weights = OnnxWeights(folder, config)
        return ReadBack(weights, weights.constants())


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
