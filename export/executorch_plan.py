"""From steps to an execution plan of ExecuTorch: values, instructions, delegates and memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .executorch_file import PteFile
from .executorch_graph import TOKENS, Argument, Cache, Constant, Filter, Kernel, Partition, Scalar, Step, Tensor
from .executorch_schema import XNNPACK_SCHEMA, compile_flatbuffers

_DTYPES = {
    "float32": "FLOAT", "float16": "HALF", "float64": "DOUBLE", "int64": "LONG", "int8": "CHAR", "uint8": "BYTE",
}  # fmt: skip
_XNN_DTYPES = {"float32": "xnn_datatype_fp32", "float16": "xnn_datatype_fp16"}
_NO_ID = 2**32 - 1
_NOT_INLINE = 2**64 - 1
_ALIGNMENT = 64
_XNN_HEADER = struct.Struct("<4s4sHIIIQ")  # as XNNHeader in xnnpack_graph_serialize.py
_LEAF = '{"type": null, "context": null, "children_spec": []}'


class PlanWriter:
    """Collects the values and instructions of one method."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self.values: list[dict[str, Any]] = []
        self._ids: dict[Any, int] = {}
        self._operators: dict[str, int] = {}
        self.instructions: list[dict[str, Any]] = []
        self._uses: dict[Tensor | Cache, list[int]] = {}  # -> the instructions that touch it

    def _value(self, key: Any, kind: str, content: Mapping[str, Any]) -> int:
        if key not in self._ids:
            self._ids[key] = len(self.values)
            self.values.append({"val_type": kind, "val": dict(content)})
        return self._ids[key]

    def value(self, argument: Argument) -> int:
        """The index of an argument among the plan's values; a tensor counts as used by the next instruction."""
        if isinstance(argument, (Tensor, Cache)):
            self._uses.setdefault(argument, []).append(len(self.instructions))
        if isinstance(argument, (Tensor, Cache, Constant)):
            return self._value(argument, "Tensor", self._tensor(argument))
        if isinstance(argument, Scalar):
            return self._value(argument, "Int", {"int_val": 0})
        if argument is None:
            return self._value("null", "Null", {})
        if isinstance(argument, bool):
            return self._value(("bool", argument), "Bool", {"bool_val": argument})
        if isinstance(argument, int):
            return self._value(("int", argument), "Int", {"int_val": argument})
        return self._value(("float", argument), "Double", {"double_val": argument})

    def _tensor(self, tensor: Tensor | Cache | Constant) -> dict[str, Any]:
        return {
            "scalar_type": _DTYPES[tensor.dtype],
            "sizes": self.bound(tensor.dims),
            "dim_order": list(range(len(tensor.dims))),
            "data_buffer_idx": tensor.index if isinstance(tensor, Constant) else 0,
            "shape_dynamism": "DYNAMIC_BOUND" if TOKENS in tensor.dims else "STATIC",
        }

    def bound(self, dims: Sequence[int]) -> list[int]:
        """The largest shape that occurs."""
        return [self._most_tokens if dim == TOKENS else dim for dim in dims]

    def call(self, kernel: Kernel) -> None:
        """Add the call of a kernel."""
        name, _, overload = kernel.op.partition(".")
        operator = self._operators.setdefault(f"{name}.{overload}", len(self._operators))
        outs = [self.value(kernel.output)]
        outs += [] if kernel.second_output is None else [self.value(kernel.second_output)]
        arguments = [*(self.value(argument) for argument in kernel.arguments), *outs]
        if kernel.repeat_output:
            arguments += outs if len(outs) == 1 else [self._value(tuple(outs), "TensorList", {"items": outs})]
        self._instruct("KernelCall", {"op_index": operator, "args": arguments})

    def delegate(self, index: int, partition: Partition) -> None:
        """Add the call of a delegate: its inputs, then its outputs."""
        arguments = [self.value(tensor) for tensor in (*partition.inputs, *partition.outputs)]
        self._instruct("DelegateCall", {"delegate_index": index, "args": arguments})

    def _instruct(self, kind: str, content: dict[str, Any]) -> None:
        self.instructions.append({"instr_args_type": kind, "instr_args": content})

    def operators(self) -> list[dict[str, str]]:
        """Names of the kernels that are called."""
        return [{"name": op.partition(".")[0], "overload": op.partition(".")[2]} for op in self._operators]

    def plan_memory(self, given: Sequence[Tensor]) -> int:
        """Give every tensor but those ``given`` by the caller a place; returns the bytes needed.

        Two tensors may share a place if one is done with before the other is written. The largest choose first (the
        greedy rule that ExecuTorch's own planner has too). Caches outlive the call.
        """
        placed: list[tuple[int, int, int, int]] = []  # offset, end, first use, last use
        forever = len(self.instructions)
        wanted = [(self._bytes(tensor), tensor) for tensor in self._uses if tensor not in given]
        for size, tensor in sorted(wanted, key=lambda item: -item[0]):
            uses = [-1, forever] if isinstance(tensor, Cache) else self._uses[tensor]
            offset = 0
            for start, end, first, last in sorted(placed):
                if first <= uses[-1] and uses[0] <= last and start < offset + size and offset < end:
                    offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            placed.append((offset, offset + size, uses[0], uses[-1]))
            self.values[self._ids[tensor]]["val"]["allocation_info"] = {
                "memory_id": 1,
                "memory_offset_low": offset & 0xFFFFFFFF,
                "memory_offset_high": offset >> 32,
            }
        return max(end for _, end, _, _ in placed)

    def _bytes(self, tensor: Tensor | Cache) -> int:
        return int(np.prod(self.bound(tensor.dims), dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def forward_plan(
    file: PteFile, steps: Sequence[Step], inputs: Sequence[Tensor], output: Tensor, most_tokens: int
) -> dict[str, Any]:
    """The method ``forward``; its delegates are written to the file."""
    writer = PlanWriter(most_tokens)
    for tensor in inputs:
        writer.value(tensor)
    partitions = [step for step in steps if isinstance(step, Partition)]
    graphs = compile_flatbuffers(XNNPACK_SCHEMA, [_xnn_graph(writer, partition) for partition in partitions])
    delegates = [
        {"id": "XnnpackBackend", "processed": {"location": "SEGMENT", "index": file.segment(_xnn_payload(graph))}}
        for graph in graphs
    ]
    index = 0
    for step in steps:
        if isinstance(step, Kernel):
            writer.call(step)
        else:
            writer.delegate(index, step)
            index += 1
    outputs = [writer.value(output)]
    memory = writer.plan_memory(inputs)
    return _plan("forward", writer.values, outputs) | {
        "inputs": [writer.value(tensor) for tensor in inputs],
        "chains": [{"inputs": [], "outputs": [], "instructions": writer.instructions}],
        "operators": writer.operators(),
        "delegates": [delegate | {"compile_specs": []} for delegate in delegates],
        "non_const_buffer_sizes": [0, memory],
    }


def constant_plan(name: str, values: Sequence[int | bool]) -> dict[str, Any]:
    """A method that returns constants: how ExecuTorch's runners learn about a model."""
    encoded = [
        {"val_type": "Bool", "val": {"bool_val": value}}
        if isinstance(value, bool)
        else {"val_type": "Int", "val": {"int_val": value}}
        for value in values
    ]
    return _plan(name, encoded, list(range(len(values))))


def _plan(name: str, values: list[dict[str, Any]], outputs: list[int]) -> dict[str, Any]:
    """A method without instructions. How its results are nested is told in pytree's notation: here, not at all."""
    return {
        "name": name,
        "container_meta_type": {"encoded_inp_str": "", "encoded_out_str": f"[1, {_LEAF}]"},
        "values": values,
        "inputs": [],
        "outputs": outputs,
        "chains": [{"inputs": [], "outputs": [], "instructions": []}],
        "operators": [],
        "delegates": [],
        "non_const_buffer_sizes": [0],
    }


def _xnn_payload(graph: bytes) -> bytes:
    """A graph with XNNPACK's header; it holds no constants of its own, they are all named."""
    start = -(-_XNN_HEADER.size // 16) * 16
    end = start + -(-len(graph) // 16) * 16
    header = _XNN_HEADER.pack(b"\0" * 4, b"XH00", _XNN_HEADER.size, start, len(graph), end, 0)
    return (header.ljust(start, b"\0") + graph).ljust(end, b"\0")


class _XnnValues:
    """The values of one XNNPACK graph: external ones first, since their numbers are the delegate's arguments."""

    def __init__(self, writer: PlanWriter, partition: Partition) -> None:
        self._writer = writer
        self.values: list[dict[str, Any]] = []
        self.data: list[dict[str, Any]] = [{"offset": 0, "size": 0}]  # index 0 means: not a constant
        self._ids: dict[Any, int] = {}
        for flag, tensors in ((1, partition.inputs), (2, partition.outputs)):
            for tensor in tensors:
                self._define(tensor, self._float(tensor, flag))

    def _define(self, key: Any, value: dict[str, Any]) -> int:
        self._ids[key] = len(self.values)
        self.values.append(value)
        return self._ids[key]

    def id(self, value: Tensor | Constant | Cache | Filter | None) -> int:
        """The number of a value; 2**32 - 1 for one that is left out."""
        if value is None:
            return _NO_ID
        if value in self._ids:
            return self._ids[value]
        if isinstance(value, Filter):
            return self._define(value, self._filter(value))
        if isinstance(value, Tensor) and value.dtype == "qd8":
            base = self._base("xnn_datatype_qdint8", value.dims)
            return self._define(value, _quantized(base, "PerTokenDynamicQuant", {"num_nonbatch_dims": 1}))
        return self._define(value, self._float(value, 0))

    def _float(self, tensor: Tensor | Constant | Cache, flag: int) -> dict[str, Any]:
        base = self._base(_XNN_DTYPES[tensor.dtype], tensor.dims)
        if flag:
            base |= {"external_id": len(self.values), "flags": flag}
        return {"xvalue_union_type": "XNNTensorValue", "xvalue_union": base}

    def _base(self, datatype: str, dims: Sequence[int]) -> dict[str, Any]:
        return {
            "datatype": datatype,
            "num_dims": len(dims),
            "dims": self._writer.bound(dims),
            "constant_buffer_idx": 0,
            "external_id": _NO_ID,
            "flags": 0,
            "id_out": len(self.values),
        }

    def _filter(self, weight: Filter) -> dict[str, Any]:
        base = self._base(weight.datatype, weight.dims) | {"constant_buffer_idx": self._constant(weight.key)}
        if weight.scale_key is None:
            return {"xvalue_union_type": "XNNTensorValue", "xvalue_union": base}
        out, columns = weight.dims
        scales = {"scale": [], "channel_dim": 0, "scale_buffer_idx": self._constant(weight.scale_key)}
        if weight.group is None:
            return _quantized(base, "PerChannelQuant", scales | {"num_scales": out})
        count = out * columns // weight.group
        return _quantized(base, "PerChannelGroupQuant", scales | {"num_scales": count, "group_size": weight.group})

    def _constant(self, key: str) -> int:
        self.data.append({"offset": _NOT_INLINE, "size": 0, "named_key": key})
        return len(self.data) - 1


def _quantized(base: dict[str, Any], kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
    content = {"tensor_value": base, "quant_params_type": kind, "quant_params": parameters}
    return {"xvalue_union_type": "XNNQuantizedTensorValue", "xvalue_union": content}


def _xnn_graph(writer: PlanWriter, partition: Partition) -> dict[str, Any]:
    """A partition as XNNPACK's schema has it."""
    values = _XnnValues(writer, partition)
    nodes = []
    for handle, node in enumerate(partition.nodes):
        inputs = {name: values.id(value) for name, value in node.inputs.items()}
        content = inputs | {"output_id": values.id(node.output), "flags": 0} | dict(node.fields)
        nodes.append({"xnode_union_type": node.op, "xnode_union": content, "debug_handle": handle})
    externals = len(partition.inputs) + len(partition.outputs)
    return {
        "version": "0",
        "xnodes": nodes,
        "xvalues": values.values,
        "num_externs": externals,
        "input_ids": list(range(len(partition.inputs))),
        "output_ids": list(range(len(partition.inputs), externals)),
        "constant_data": values.data,
    }
