"""How large each target's artifact will be."""

from __future__ import annotations

from .plan_graph import graph_bytes
from .plan_storage import (
    ONNX_INLINE_BYTES,
    Stored,
    coreml_data_bytes,
    executorch_data_bytes,
    onnx_data_bytes,
    onnx_tensors,
)

_GENAI_CONFIG_BYTES = 1100  # genai_config.json, the same for all models but for some digits


def artifact_bytes(target: str, stored: Stored, tokenizer_bytes: int) -> int:
    """Bytes of the target's folder in a bundle: tensors to the byte, and an estimate of the graph around them.

    tokenizer_bytes  of tokenizer.json and its settings, which onnxruntime-genai wants beside the model
    """
    graph = graph_bytes(target, stored)
    if target == "executorch":
        return graph + executorch_data_bytes(stored)
    if target == "coreml":
        return graph + coreml_data_bytes(stored)
    tensors = list(onnx_tensors(stored))
    inline = sum(size for size in tensors if size < ONNX_INLINE_BYTES)
    beside = tokenizer_bytes + _GENAI_CONFIG_BYTES if _same_caches(stored) else 0
    return graph + inline + onnx_data_bytes(tensors) + beside


def _same_caches(stored: Stored) -> bool:
    """Whether onnxruntime-genai can run the model, and its files are written."""
    return len({(layer.attention.kv_heads, layer.attention.head_dim) for layer in stored.config.layers}) == 1
