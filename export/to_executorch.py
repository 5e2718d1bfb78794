"""The ExecuTorch target: the decoder written directly as a .pte. No torch, no tracing.

Lowering a traced model takes minutes (Python passes over its graph, one after the other), and codes survive it only
as long as every pass keeps its pattern. Here the decoder writes the operations that such a lowering arrives at:
XNNPACK's, and the kernels that ExecuTorch has for language models. Both file formats are ExecuTorch's published
schemas (schema/program.fbs, backends/xnnpack/serialization/schema.fbs), which later runtimes keep reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor
from .caches import check_cache
from .config import ModelConfig
from .decoder import decoder
from .executorch_calls import most_tokens
from .executorch_file import MODEL_FILE, PteFile
from .executorch_graph import Kernel, divide
from .executorch_ops import ExecuTorchOps
from .executorch_plan import constant_plan, forward_plan
from .inventory import take_inventory

# What may run outside XNNPACK, and why.
KERNELS = {
    "aten::_local_scalar_dense": "the position, as a number",
    "aten::sym_size": "how many tokens the call brings",
    "executorch_prim::add": "where they end",
    "aten::slice_copy": "their rows of the rotary tables, and the last token",
    "aten::embedding": "rows of a dense table",
    "quantized_decomposed::embedding_byte": "rows of an int8 table",
    "quantized_decomposed::embedding_4bit": "rows of an int4 table",
    "aten::topk": "which experts a token goes to",
    "aten::scatter": "their weights, among those of all",
    "llama::update_cache": "writes the cache in place",
    "llama::custom_sdpa": "attention over the cache",
    "quantized_decomposed::choose_qparams_per_token_asymmetric": "ranges of int8 queries, keys and values",
    "quantized_decomposed::quantize_per_token": "their codes",
    "aten::_to_copy": "their scales and zero points, in the types that attention takes",
    "llama::custom_quantized_sdpa": "attention over an int8 cache",
}


def write_executorch(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    context: int,
    *,
    bos_id: int | None = None,
    eos_ids: Sequence[int] = (),
    every_token: bool = False,
    int8_cache: bool = False,
) -> None:
    """Write ``folder``/model.pte for up to ``context`` tokens.

    Quantised weights keep their codes and scales bit for bit; XNNPACK gives their activations int8. fp16 weights are
    stored as such and computed with in float32.
    ``bos_id``: the token that begins a text. ``eos_ids``: those that end an answer; without them ExecuTorch's runner
    takes its tokenizer's guess.
    ``every_token``: give the logits of every token, to examine a program; runners want the last one's only.
    ``int8_cache``: keep keys and values as int8, with a scale and a zero point for each head of a token.

    Raises InputError for a format or a shape that XNNPACK cannot take.
    """
    _check_formats(config, weights)
    if int8_cache:
        check_cache("executorch", "int8", config)
    file = PteFile(folder)
    try:
        ops = ExecuTorchOps(file, weights, config, context, every_token, int8_cache)
        logits = ops.compute(decoder(ops, config, ops.tokens))
        steps = divide(ops.nodes, [logits])
        _check_kernels([step.op for step in steps if isinstance(step, Kernel)])
        plans = [forward_plan(file, steps, [ops.tokens, ops.position], logits, most_tokens(context))]
        file.save(plans + _constant_methods(config, context, bos_id, eos_ids))
    finally:
        file.close()


def _check_kernels(names: Sequence[str]) -> None:
    unexpected = sorted({name.partition(".")[0] for name in names} - set(KERNELS))
    if unexpected:
        raise RuntimeError(f"operations fell out of XNNPACK: {', '.join(unexpected)}")


def _constant_methods(
    config: ModelConfig, context: int, bos_id: int | None, eos_ids: Sequence[int]
) -> list[dict[str, object]]:
    """What ExecuTorch's runner for text asks a model."""
    answers: dict[str, Sequence[int | bool]] = {
        "get_max_seq_len": [most_tokens(context)],
        "get_max_context_len": [context],
        "get_vocab_size": [config.vocab_size],
        "get_n_layers": [config.num_hidden_layers],
        "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [True],
        "enable_dynamic_shape": [True],
    }
    answers |= {} if bos_id is None else {"get_bos_id": [bos_id]}
    answers |= {"get_eos_ids": list(eos_ids)} if eos_ids else {}
    return [constant_plan(name, values) for name, values in answers.items()]


def _check_formats(config: ModelConfig, weights: Weights) -> None:
    """XNNPACK takes int4 in groups that 32 divides and int8 in whole rows."""
    inventory = take_inventory(config)
    for name in dict.fromkeys(name for names in inventory.linears for name in names):
        weight = weights[name]
        if not isinstance(weight, QuantizedTensor):
            continue
        columns = weight.shape[1]
        if weight.bits == 4 and weight.group % 32:
            raise InputError(f"{name}: ExecuTorch needs int4 groups that 32 divides, these have {weight.group}")
        if weight.bits == 8 and weight.group != columns:
            raise InputError(f"{name}: ExecuTorch needs int8 with one scale for each row; use int8 without groups")


class Dequantized:
    """Weights with every quantised tensor as the float32 it stands for."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> CanonicalTensor:
        weight = self._weights[name]
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else np.asarray(weight, np.float32)


__all__ = ["KERNELS", "MODEL_FILE", "Dequantized", "write_executorch"]
