"""Reading the weights and constants of a finished .pte back, as the program uses them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.config import ModelConfig
from ..export.decoder import decoder
from ..export.executorch_file import MODEL_FILE
from ..quantize.store import CanonicalTensor, from_bf16_bits, unpack_int4
from ..quantize.tensor import QuantizedTensor
from .pte_file import Pte, reading
from .pte_flow import Operation, PteFlow
from .pte_ops import NO_VALUE, PteOps, Rows, dense_data
from .target import ReadBack


class PteWeights:
    """The canonical weights of a .pte; a tensor is unpacked when it is asked for."""

    def __init__(self, flow: PteFlow, ops: PteOps) -> None:
        self._flow = flow
        self._ops = ops
        biased = {name: place for name, place in ops.linears.items() if place.operation.node["bias_id"] != NO_VALUE}
        self._biases = {name.removesuffix("weight") + "bias": place for name, place in biased.items()}
        self._names = dict.fromkeys([*ops.embeddings, *ops.linears, *self._biases, *ops.vectors])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> CanonicalTensor:
        self._flow.pte.release()  # or the whole file would come to look as if it were held
        with reading(self._flow.pte.path):
            return self._read(name)

    def _read(self, name: str) -> CanonicalTensor:
        if name in self._ops.embeddings:
            return self._embedding(self._ops.embeddings[name])
        if name in self._ops.vectors:
            return self._constant(self._ops.vectors[name])
        if name in self._biases:
            place = self._biases[name]
            return dense_data(self._flow, place.operation, "bias_id")[place.start : place.stop]
        return self._linear(name, self._ops.linears[name])

    def _constant(self, value: Hashable) -> NDArray[Any]:
        assert isinstance(value, int), value
        return self._flow.pte.constant(value)

    def _embedding(self, operation: Operation) -> CanonicalTensor:
        codes = self._constant(operation.inputs[0])
        if operation.op == "aten::embedding":
            return codes
        scales = self._constant(operation.inputs[1])
        if operation.op.endswith("embedding_byte"):
            return QuantizedTensor(codes, scales, 8)
        swapped = (codes << np.uint8(4)) | (codes >> np.uint8(4))  # this kernel has the even column in the high nibble
        return QuantizedTensor(unpack_int4(swapped), scales, 4)

    def _linear(self, name: str, place: Rows) -> CanonicalTensor:
        value, graph = place.operation.value("filter_id"), place.operation.graph
        assert graph is not None
        if value["quant_params"] is None:
            return dense_data(self._flow, place.operation, "filter_id")[place.start : place.stop]
        rows, (out, columns) = slice(place.start, place.stop), value["dims"]
        data, scales = graph.data[value["constant_buffer_idx"]], graph.data[value["quant_params"]["scale_buffer_idx"]]
        as_array = self._flow.pte.as_array
        if value["datatype"] == "xnn_datatype_qcint8":
            return QuantizedTensor(
                as_array(data, np.int8, [out, columns])[rows], as_array(scales, np.float32, [out, 1])[rows], 8
            )
        if value["datatype"] != "xnn_datatype_qbint4":
            raise self._flow.error(name, f"its type is {value['datatype']}, which we never write")
        packed = as_array(data, np.uint8, [out, columns // 2])[rows]
        groups = columns // value["quant_params"]["group_size"]
        return QuantizedTensor(unpack_int4(packed), from_bf16_bits(as_array(scales, np.uint16, [out, groups])[rows]), 4)


def read_back(folder: Path, config: ModelConfig) -> ReadBack:
    """Weights and constants of ``folder``/model.pte.

    Raises InputError if the file is damaged, or if its operations are not those of the model.
    """
    path = folder / MODEL_FILE
    with reading(path):
        flow = PteFlow(Pte(path))
        ops = PteOps(flow, config)
        logits = ops.computed(decoder(ops, config, ops.tokens))
    if [logits] != flow.pte.plan["outputs"]:
        raise flow.error("logits", "what the program returns is something else")
    if left := flow.left_over():
        raise InputError(f"{path}: {len(left)} operations that the model does not have, such as {left[0]}")
    return ReadBack(PteWeights(flow, ops), ops.constants, ops.caches)
