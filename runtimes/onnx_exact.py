"""A finished ONNX artifact evaluated with fp32 activations and cache, to tell conversion from kernel arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.config import ModelConfig
from .onnx_reader import CACHE_SCALES_AT, readable
from .onnx_session import MODEL_FILE, OnnxSession
from .session import AllLogits

_OF_QUANTISED_CACHES = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")
EXACT_ACCURACY = 0  # the accuracy_level of MatMulNBits and QMoE for fp32 activations


def exact_graph(folder: Path, outputs: tuple[str, ...] = ()) -> bytes:
    """The finished file's own graph with three changes: fp32 activations, an fp32 cache, the logits of every token.

    ``outputs`` are tensors inside the graph that it shall give as well. The weights stay where they are.
    """
    import onnx

    try:
        model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class of their own
        raise InputError(f"{folder / MODEL_FILE}: not a readable ONNX file ({error})") from error
    for node in model.graph.node:
        if node.op_type in ("MatMulNBits", "QMoE"):
            with readable(folder):
                next(a for a in node.attribute if a.name == "accuracy_level").i = EXACT_ACCURACY
        if node.op_type == "GroupQueryAttention":
            _keep_floats(node)
        if node.op_type == "Gather" and node.input[1] == "last_index":
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with readable(folder):
        logits = next(value for value in model.graph.output if value.name == "logits")
        logits.type.tensor_type.shape.dim[1].dim_param = "tokens"
    for name in outputs:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())


def _keep_floats(node: Any) -> None:
    """Let an attention keep keys and values as they are."""
    del node.input[CACHE_SCALES_AT:]
    kept = [attribute for attribute in node.attribute if attribute.name not in _OF_QUANTISED_CACHES]
    del node.attribute[:]
    node.attribute.extend(kept)


def _open(folder: Path, graph: bytes) -> AllLogits:
    return OnnxSession(folder, model=graph)


def exact_logits(
    folder: Path,
    config: ModelConfig,
    tokens: NDArray[np.int64],
    open_graph: Callable[[Path, bytes], AllLogits] = _open,
) -> NDArray[np.float32]:
    """Logits of token ids (batch, tokens): float32 (batch, tokens, vocab_size), through the cache.

    Each sequence is run as a first part, a second part that continues it, and its last token alone, so that what the
    cache holds matters. ``open_graph`` runs a graph whose tensors lie in a folder.
    """
    session = open_graph(folder, exact_graph(folder))
    rows = []
    for sequence in tokens.tolist():
        session.reset()
        rows.append(np.concatenate([session.run_all(part).copy() for part in parts_of(sequence)]))
    return np.stack(rows)


def parts_of(sequence: list[int]) -> list[list[int]]:
    """A first half, a second half and the last token; what is empty is left out."""
    half, last = len(sequence) // 2, len(sequence) - 1
    return [part for part in (sequence[:half], sequence[half:last], sequence[last:]) if part]
