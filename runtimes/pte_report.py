"""What ``inspect`` says about a .pte: what runs where, what is stored, what memory is reserved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..export.to_executorch import KERNELS
from .pte_file import DTYPES, XNNPACK, Graph, Pte, reading

_CACHE = "llama::update_cache"
_STORED = {
    "float32": "fp32", "float16": "fp16", "int8": "int8", "uint8": "int4", "qcint8": "int8", "qbint4": "int4",
    "qcint4": "int4", "fp32": "fp32", "fp16": "fp16",
}  # fmt: skip


@dataclass(frozen=True)
class PteReport:
    """What is in a .pte.

    backends          delegates by the name of their backend
    delegated         operations inside XNNPACK, with their numbers
    kernels           operations left to the runtime's kernels, with their numbers
    unexpected        those of them that our programs leave to no kernel
    weights           bytes stored, by type; what two operations share counts once
    memory            bytes that the runtime reserves for caches, and for values that share what is left
    twice_bytes       of a 4-bit table that embedding and head share, stored for each of them
    constant_methods  what the methods without instructions answer
    """

    file_bytes: int
    backends: Mapping[str, int]
    delegated: Mapping[str, int]
    kernels: Mapping[str, int]
    unexpected: Sequence[str]
    weights: Mapping[str, int]
    memory: Mapping[str, int]
    twice_bytes: int
    constant_methods: Mapping[str, list[int | bool | float | str]]


def inspect_pte(path: Path) -> PteReport:
    """What is in the file; raises InputError if it cannot be read."""
    with reading(path):
        return _report(Pte(path), path.stat().st_size)


def _report(pte: Pte, file_bytes: int) -> PteReport:
    calls = [call for call in pte.instructions() if call["type"] == "KernelCall"]
    delegates = [delegate["id"] for delegate in pte.plan["delegates"]]
    graphs = [pte.graph(index) for index, name in enumerate(delegates) if name == XNNPACK]
    kernels = Counter(pte.kernel_name(call["op_index"]) for call in calls)
    return PteReport(
        file_bytes=file_bytes,
        backends=Counter(delegates),
        delegated=Counter(node["type"] for graph in graphs for node in graph.nodes),
        kernels=kernels,
        unexpected=sorted(set(kernels) - set(KERNELS)),
        weights=_stored_bytes(pte, graphs),
        memory=_memory(pte, calls),
        twice_bytes=_stored_twice(pte, calls, graphs),
        constant_methods={
            plan["name"]: [_plain(plan["values"][index]["val"]) for index in plan["outputs"]]
            for plan in pte.program["execution_plan"]
            if not any(chain["instructions"] for chain in plan["chains"])
        },
    )


def _plain(value: dict[str, Any]) -> Any:
    return next(content for key, content in value.items() if key != "type")


def _stored_bytes(pte: Pte, graphs: list[Graph]) -> dict[str, int]:
    """Bytes of constants by type, each place in the file once."""
    places: dict[int, tuple[str, int]] = {}
    for index, value in enumerate(pte.plan["values"]):
        content = value["val"]
        if content and content["type"] == "Tensor" and content["data_buffer_idx"]:
            array = pte.constant(index)
            places[array.ctypes.data] = (array.dtype.name, array.nbytes)
    for graph in graphs:
        for value in graph.values.values():
            data, parameters = graph.data[value["constant_buffer_idx"]], value["quant_params"]
            if value["constant_buffer_idx"]:
                places.setdefault(data.ctypes.data, (value["datatype"].removeprefix("xnn_datatype_"), len(data)))
            if parameters and parameters.get("scale_buffer_idx"):
                scales = graph.data[parameters["scale_buffer_idx"]]
                places.setdefault(scales.ctypes.data, ("scales of linears", len(scales)))
    totals: Counter[str] = Counter()
    for name, size in places.values():
        totals[_STORED.get(name, name)] += size
    return dict(totals)


def _memory(pte: Pte, calls: list[dict[str, Any]]) -> dict[str, int]:
    caches = {call["args"][1] for call in calls if pte.kernel_name(call["op_index"]) == _CACHE}
    total, held = sum(pte.plan["non_const_buffer_sizes"]), 0
    for tensor in map(pte.value, caches):
        held += int(np.prod(tensor["sizes"], dtype=np.int64)) * np.dtype(DTYPES[tensor["scalar_type"]]).itemsize
    return {"caches": held, "values": total - held, "total": total}


def _stored_twice(pte: Pte, calls: list[dict[str, Any]], graphs: list[Graph]) -> int:
    """Bytes of a 4-bit embedding whose codes an XNNPACK weight holds again, in the other order."""
    for call in calls:
        if not pte.kernel_name(call["op_index"]).endswith("embedding_4bit"):
            continue
        table = pte.constant(call["args"][0])
        swapped = (table << np.uint8(4) | table >> np.uint8(4)).tobytes()
        for graph in graphs:
            for value in graph.values.values():
                data = graph.data[value["constant_buffer_idx"]]
                if len(data) == len(swapped) and data.tobytes() == swapped:
                    return len(data) + len(graph.data[value["quant_params"]["scale_buffer_idx"]])
    return 0


def remarks(path: Path) -> tuple[str, ...]:
    """What a reader of the certificate must know of the file."""
    twice = inspect_pte(path).twice_bytes
    if not twice:
        return ()
    return (
        f"the table of embedding and head is stored twice, {twice / 1e6:.1f} MB more: of two 4-bit columns in a byte "
        "XNNPACK wants the first one low, ExecuTorch's embedding kernel high",
    )
