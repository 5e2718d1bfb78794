"""A mixture of experts as ONNX Runtime's QMoE, which computes only the chosen experts.

Its CPU kernel takes int4 in blocks, gate and up interleaved row by row. For int8 it computes in fp32 or, in blocks, in
nothing else than int8: such experts are written as plain operators, all of which run for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.store import CanonicalTensor, Weights, bias_of, pack_int4
from ..quantize.tensor import QuantizedTensor
from .config import Mlp
from .decoder import expert_names
from .onnx_file import MICROSOFT, OnnxFile

_BLOCKS = (16, 32, 64, 128)


def fits_qmoe(weights: Weights, layer: int, mlp: Mlp) -> bool:
    """Whether all experts of a layer have the one form that the kernel takes."""
    assert mlp.experts is not None
    if not mlp.gated or mlp.activation != "silu":
        return False
    forms = set()
    for expert in range(mlp.experts.count):
        for name in (name for names in expert_names(layer, expert, mlp) for name in names):
            weight = weights[name]
            plain = isinstance(weight, QuantizedTensor) and weight.bits == 4 and bias_of(weights, name) is None
            forms.add(weight.group if plain and isinstance(weight, QuantizedTensor) else None)
    return len(forms) == 1 and forms <= set(_BLOCKS)


def write_qmoe(file: OnnxFile, weights: Weights, x: str, logits: str, layer: int, mlp: Mlp, accuracy: int) -> str:
    """The mixture of x (1, tokens, hidden) by the router's logits (1, tokens, experts).

    The kernel renormalises the softmax of the chosen ones; where the model does not, it is given the shares.
    """
    assert mlp.experts is not None
    prefix, experts = f"model.layers.{layer}.mlp", mlp.experts
    file.small(f"{prefix}.router.rows", np.array([-1, experts.count], np.int64))
    rows = file.node("Reshape", [logits, f"{prefix}.router.rows"], [f"{prefix}.router.logits"])
    inputs = [x, rows]
    for part, name in enumerate(("gate_up", "down")):
        names = [expert_names(layer, expert, mlp)[part] for expert in range(experts.count)]
        inputs += [*_write(file, weights, f"{prefix}.experts.{name}", names), ""]
    if not experts.renormalise:
        shares = file.node("Softmax", [rows], [f"{prefix}.router.shares"], axis=-1)
        inputs += [""] * (14 - len(inputs)) + [shares]
    group = _quantized(weights[expert_names(layer, 0, mlp)[1][0]]).group
    return file.node(
        "QMoE", inputs, [prefix], MICROSOFT, k=experts.active, activation_type="swiglu", activation_alpha=1.0,
        activation_beta=0.0, swiglu_fusion=1, normalize_routing_weights=int(experts.renormalise), expert_weight_bits=4,
        block_size=group, weights_prepacked=0, accuracy_level=accuracy,
    )  # fmt: skip


def _write(file: OnnxFile, weights: Weights, prefix: str, names: list[tuple[str, ...]]) -> tuple[str, str]:
    """Codes (experts, rows, columns / 2), scales (experts, rows, groups); rows that share an input interleaved."""
    first = [_quantized(weights[name]) for name in names[0]]
    rows, columns = sum(weight.shape[0] for weight in first), first[0].shape[1]

    def parts(take: Callable[[QuantizedTensor], NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for group in names:
            yield np.stack([take(_quantized(weights[name])) for name in group], 1)  # (rows, weights, ...)

    codes = file.tensor(
        f"{prefix}.codes", (len(names), rows, columns // 2), parts(lambda weight: pack_int4(weight.codes))
    )
    shape = (len(names), rows, columns // first[0].group)
    return codes, file.tensor(f"{prefix}.scales", shape, parts(lambda weight: weight.scales))


def _quantized(weight: CanonicalTensor) -> QuantizedTensor:
    assert isinstance(weight, QuantizedTensor)
    return weight
