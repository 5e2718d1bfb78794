"""What native code takes on trust in a .pte, checked before it is given one: a damaged file must not crash us.

ExecuTorch checks that its flatbuffers are whole; XNNPACK that the shapes of its operations fit. Neither checks that an
argument is of the type that a kernel takes, or that a weight has as many bytes as its shape says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pte_file import DTYPES, Graph, Pte, reading
from .pte_flow import PteFlow
from .pte_ops import NO_VALUE

# Arguments of the kernels that we call: tensor, int, float, bool, list; "?" also takes a value that is left out.
SIGNATURES: Mapping[str, Sequence[str]] = {
    "aten::_local_scalar_dense": ("T", "I"),
    "aten::sym_size": ("T", "I", "I"),
    "executorch_prim::add": ("I", "I", "I"),
    "aten::slice_copy": ("T", "I", "I?", "I?", "I", "T", "T"),
    "aten::embedding": ("T", "T", "I", "B", "B", "T", "T"),
    "quantized_decomposed::embedding_byte": ("T", "T", "T?", "I", "I", "T", "T", "T"),
    "quantized_decomposed::embedding_4bit": ("T", "T", "T?", "I", "I", "T", "T", "T"),
    "aten::topk": ("T", "I", "I", "B", "B", "T", "T", "L"),
    "aten::scatter": ("T", "I", "T", "T", "T", "T"),
    "llama::update_cache": ("T", "T", "I", "T", "T"),
    "llama::custom_sdpa": ("T", "T", "T", "I", "T?", "F", "B", "F?", "T", "T"),
    "quantized_decomposed::choose_qparams_per_token_asymmetric": ("T", "I", "T", "T", "L"),
    "quantized_decomposed::quantize_per_token": ("T", "T", "T", "I", "I", "I", "T", "T"),
    "aten::_to_copy": ("T", "B", "?", "T", "T"),
    "llama::custom_quantized_sdpa": (*("T", "T", "T", "I", "T?", "F", "B", "F?"), *["T"] * 6, "B", "T", "T"),
}
_QUANTIZING = {
    "quantized_decomposed::choose_qparams_per_token_asymmetric": ["FLOAT", "DOUBLE", "LONG"],
    "quantized_decomposed::quantize_per_token": ["FLOAT", "DOUBLE", "LONG", "CHAR", "CHAR"],
}
_KINDS = {"Tensor": "T", "Int": "I", "Double": "F", "Bool": "B", "Null": "?", "TensorList": "L"}
_INPUT = 1  # a flag of XNNPACK's values
_BITS = {"fp32": 32, "fp16": 16, "qcint8": 8, "qbint4": 4}


def check_program(path: Path) -> int | None:
    """Tokens that the caches hold; raises InputError unless native code can be trusted with all of the file."""
    with reading(path):
        pte = Pte(path)
        PteFlow(pte)  # every operation has its inputs, and none has no business there
        for plan in pte.program["execution_plan"]:
            idle = not any(chain["instructions"] for chain in plan["chains"])
            _must(plan["name"] == "forward" or idle, f"a method {plan['name']} that computes")
            _check_plan(pte, plan)
        for index in range(len(pte.plan["delegates"])):
            _check_graph(pte.graph(index))
        return cache_length(pte)


def _must(fact: bool, what: object) -> None:
    if not fact:
        raise ValueError(what)


def _check_plan(pte: Pte, plan: Mapping[str, Any]) -> None:
    values = [value["val"] for value in plan["values"]]
    for tensor in values:
        if tensor["type"] == "Tensor":
            _check_tensor(pte, plan, tensor)
    check_caches(plan)
    for index in (*plan["inputs"], *plan["outputs"]):
        _must(0 <= index < len(values), f"no value {index}")
    for chain in plan["chains"]:
        for instruction in chain["instructions"]:
            _check_call(plan, instruction["instr_args"])


def _check_call(plan: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """Its arguments are of the types that it takes."""
    _must(min(call["args"]) >= 0, f"arguments {call['args']}")
    values = [plan["values"][index]["val"] for index in call["args"]]
    kinds = [_KINDS[value["type"]] for value in values]
    name = plan["operators"][call["op_index"]]["name"] if call["type"] == "KernelCall" else "delegate"
    wanted = SIGNATURES[name] if call["type"] == "KernelCall" else ["T"] * len(kinds)
    _must(all(kind in want for kind, want in zip(kinds, wanted, strict=True)), f"{name} of {kinds}")
    if name == "llama::update_cache":
        new, cache = values[:2]
        same = new["scalar_type"] == cache["scalar_type"] and new["sizes"][2:] == cache["sizes"][2:]
        _must(same and len(new["sizes"]) == len(cache["sizes"]) == 4, f"{new['sizes']} into a cache {cache['sizes']}")
    if name in _QUANTIZING:
        check_quantizing(name, [value for value in values if value["type"] == "Tensor"])


def check_quantizing(name: str, tensors: Sequence[Mapping[str, Any]]) -> None:
    """Of what makes int8 codes: types and shapes, by which the kernels stop the process."""
    sizes = tensors[0]["sizes"]
    ranges = [*sizes[:-1], 1]
    shapes = [sizes, ranges, ranges, sizes, sizes][: len(tensors)]
    _must([tensor["sizes"] for tensor in tensors] == shapes, f"{name} of {[tensor['sizes'] for tensor in tensors]}")
    types = [tensor["scalar_type"] for tensor in tensors]
    _must(types == _QUANTIZING[name], f"{name} of {types}")


def _check_tensor(pte: Pte, plan: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
    """Its bytes lie within the memory or the constants that it belongs to."""
    sizes, place = tensor["sizes"], tensor["allocation_info"]
    _must(min(sizes, default=1) > 0, f"a tensor of shape {sizes}")
    _must(tensor["dim_order"] == list(range(len(sizes))), f"order of dimensions {tensor['dim_order']}")
    _must(not tensor["storage_offset"] and tensor["extra_tensor_info"] is None, "a tensor stored elsewhere")
    size = int(np.prod(sizes, dtype=object)) * np.dtype(DTYPES[tensor["scalar_type"]]).itemsize
    if index := tensor["data_buffer_idx"]:
        constants = pte.program["constant_segment"]
        end = constants["offsets"][index] + size
        _must(place is None and end <= len(pte.segment(constants["segment_index"])), f"constant {index} has no place")
    elif place is not None:
        offset = place["memory_offset_low"] + (place["memory_offset_high"] << 32)
        room = plan["non_const_buffer_sizes"][place["memory_id"]]
        _must(place["memory_id"] > 0 and offset % 16 == 0 and offset + size <= room, f"a tensor placed at {offset}")


def check_caches(plan: Mapping[str, Any]) -> None:
    """What a cache holds from call to call lies in memory that no other tensor uses, and all caches have one length."""
    calls = [call["instr_args"] for chain in plan["chains"] for call in chain["instructions"]]
    names = [operator["name"] for operator in plan["operators"]]
    updates = [
        call for call in calls if call["type"] == "KernelCall" and names[call["op_index"]] == "llama::update_cache"
    ]
    caches = {call["args"][1] for call in updates}
    tensors = {index: value["val"] for index, value in enumerate(plan["values"]) if value["val"]["type"] == "Tensor"}
    _must(caches <= tensors.keys(), "a cache that is no tensor")
    places = {index: _place(tensor) for index, tensor in tensors.items() if tensor["allocation_info"] is not None}
    # An output of an operation that works in place is the cache itself.
    for cache in caches & places.keys():
        memory, start, end = places[cache]
        for index, (other, first, last) in places.items():
            same = other == memory and (first, last) == (start, end) and index not in caches
            _must(
                index == cache or same or other != memory or last <= start or end <= first,
                "a cache in another's memory",
            )
    lengths = {tensors[cache]["sizes"][1] for cache in caches}
    _must(len(lengths) <= 1, f"caches of {sorted(lengths)} tokens")


def _place(tensor: Mapping[str, Any]) -> tuple[int, int, int]:
    """(memory, first byte, byte behind the last)."""
    info = tensor["allocation_info"]
    offset = info["memory_offset_low"] + (info["memory_offset_high"] << 32)
    size = int(np.prod(tensor["sizes"], dtype=object)) * np.dtype(DTYPES[tensor["scalar_type"]]).itemsize
    return info["memory_id"], offset, offset + size


def cache_length(pte: Pte) -> int | None:
    """Tokens that the caches of a checked program hold; None if it has none."""
    plan = pte.plan
    for chain in plan["chains"]:
        for call in (instruction["instr_args"] for instruction in chain["instructions"]):
            if call["type"] == "KernelCall" and plan["operators"][call["op_index"]]["name"] == "llama::update_cache":
                return int(plan["values"][call["args"][1]]["val"]["sizes"][1])
    return None


def _check_graph(graph: Graph) -> None:
    """Its nodes use values that are there by then, and every weight has all its bytes."""
    filled = {key for key, value in graph.values.items() if value["constant_buffer_idx"] or value["flags"] & _INPUT}
    for node in graph.nodes:
        used = {node[field] for field in node if field.endswith("_id") and field != "output_id"}
        unused = {NO_VALUE} if "bias_id" in node else set()
        _must(used <= filled | unused, f"{node['type']} of a value that is not computed yet")
        _must(node["output_id"] in graph.values.keys() - filled, f"{node['type']} into a value that has one")
        filled.add(node["output_id"])
        _check_shapes(graph, node)
    for value in graph.values.values():
        _check_weight(graph, value)


def _check_shapes(graph: Graph, node: Mapping[str, Any]) -> None:
    """Of operations by element and of products; XNNPACK itself checks the others."""
    fields = {field for field in node if field.endswith("_id")}
    shape = {field: graph.values[node[field]]["dims"] for field in fields if node[field] != NO_VALUE}
    result = shape["output_id"]
    if fields == {"input_id", "output_id"} and "num_dims" not in node:
        _must(result == shape["input_id"], f"{node['type']} from {shape['input_id']} to {result}")
    if node["type"] == "XNNBatchMatrixMultiply":
        left, right = shape["input1_id"], shape["input2_id"]
        batch = list(np.broadcast_shapes(left[:-2], right[:-2]))
        _must(left[-1] == right[-2] and result == [*batch, left[-2], right[-1]], f"a product: {shape}")
    elif fields == {"input1_id", "input2_id", "output_id"}:
        _must(tuple(result) == np.broadcast_shapes(shape["input1_id"], shape["input2_id"]), f"{node['type']}: {shape}")
    if "filter_id" in fields:
        rows, columns = shape["filter_id"]
        _must([*shape["input1_id"][:-1], rows] == result and shape["input1_id"][-1] == columns, f"a product: {shape}")


def _check_weight(graph: Graph, value: Mapping[str, Any]) -> None:
    datatype, dims = value["datatype"].removeprefix("xnn_datatype_"), value["dims"]
    _must(len(dims) == value["num_dims"], f"dimensions {dims}")
    if index := value["constant_buffer_idx"]:
        size = int(np.prod(dims, dtype=object)) * _BITS[datatype] // 8
        _must(size <= len(graph.data[index]), f"a weight of shape {dims} in {len(graph.data[index])} bytes")
    parameters = value["quant_params"]
    if not parameters or "scale_buffer_idx" not in parameters:
        return
    columns = dims[1]
    count = dims[0] * (columns // parameters.get("group_size", columns))
    size = count * {"qcint8": 4, "qbint4": 2}[datatype]
    _must(count == parameters["num_scales"], f"{parameters['num_scales']} scales for a shape of {dims}")
    _must(size <= len(graph.data[parameters["scale_buffer_idx"]]), "scales are missing")
