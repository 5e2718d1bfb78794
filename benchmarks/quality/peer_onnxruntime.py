"""ONNX Runtime's MatMulNBitsQuantizer, weight by weight. Usage: python peer_onnxruntime.py IN OUT default|k_quant

IN and OUT are safetensors: weights (out, in) in float32, and what the quantised operator makes of them, found by
feeding it the unit matrix.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from safetensors.numpy import load_file, save_file

GROUP = 32


def quantised(weight: np.ndarray, method: str) -> tuple[np.ndarray, int]:
    """The weight as the operator applies it, and the bytes of its initializers."""
    out, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    plain = nbits.DefaultWeightOnlyQuantConfig(block_size=GROUP, is_symmetric=True, accuracy_level=0)
    quantizer = nbits.MatMulNBitsQuantizer(
        model,
        block_size=GROUP,  # where k_quant looks for it
        algo_config=plain if method == "default" else nbits.KQuantWeightOnlyQuantConfig(),
    )
    quantizer.process()
    result: Any = quantizer.model.model
    session = onnxruntime.InferenceSession(result.SerializeToString())
    values = session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T
    # scales are float32 in the file; every runtime could hold them in 16 bits, so that is what is counted
    size = sum(
        int(np.prod(tensor.dims)) * (2 if tensor.data_type == TensorProto.FLOAT else 1)
        for tensor in result.graph.initializer
    )
    return np.ascontiguousarray(values), size


def main() -> None:
    """Quantise every weight of IN."""
    source, out, method = sys.argv[1:]
    found = {name: quantised(weight, method) for name, weight in load_file(source).items()}
    size = sum(size for _, size in found.values())
    save_file({name: values for name, (values, _) in found.items()}, out, {"bytes": str(size)})


if __name__ == "__main__":
    main()
