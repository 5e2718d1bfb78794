"""The shipped graph with one more input: of which tokens the logits are wanted.

The file on disk gives the last token's, as onnxruntime-genai wants it. The change is made in memory; weights stay where
they are, and what is computed for a token is the same, node by node.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .onnx_reader import readable
from .onnx_session import MODEL_FILE, ROWS_INPUT


def graph_with_rows(folder: Path) -> bytes:
    """The graph of ``folder``/model.onnx with an input ``logit_rows`` int64 (rows,), and logits (1, rows, vocab_size).

    Raises InputError for a file that is not an ONNX graph, or not one that gives the last token's logits.
    """
    import onnx

    path = folder / MODEL_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; export the model again with --to onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class of their own
        raise InputError(f"{path}: not a readable ONNX file ({error})") from error
    choosing = [node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "last_index"]
    if not choosing:
        raise InputError(f"{path}: its graph does not choose the last token; export the model again with --to onnx")
    for node in choosing:
        node.input[1] = ROWS_INPUT
    with readable(folder):
        logits = next(value for value in model.graph.output if value.name == "logits")
        logits.type.tensor_type.shape.dim[1].dim_param = "rows"
    model.graph.input.append(onnx.helper.make_tensor_value_info(ROWS_INPUT, onnx.TensorProto.INT64, ["rows"]))
    return bytes(model.SerializeToString())
