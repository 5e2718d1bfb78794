"""Which operation of a package deviates first from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..export import apple
from ..export.config import EMBEDDING, ModelConfig
from ..export.decoder import decoder, fused_name
from ..export.inventory import take_inventory
from ..export.recorder import Recorder
from ..export.to_torch import TorchOps
from ..quantize.store import Weights
from .coreml_exact import interpret
from .coreml_session import PACKAGE
from .mil_interpreter import Interpreter

_NOTABLE = 1e-3  # relative; float rounding stays below 1e-4 in every operation of the models measured


@torch.inference_mode()
def locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    """One line: the first operation whose output deviates, by how much, and whether only behind cached tokens."""
    sequence = tokens[:1]
    expected: dict[str, NDArray[np.float32]] = {}
    ops = TorchOps(weights, config, sequence.shape[1])
    recorder = Recorder(ops, lambda name, value: expected.__setitem__(name, value[0].numpy()))
    decoder(recorder, config, torch.from_numpy(sequence))
    found = _trace(folder, config, sequence[0].tolist(), tuple(expected))
    half = max(0, sequence.shape[1] - 4) // 2
    for name, values in expected.items():
        deviation = np.abs(found[name] - values).max(-1) / max(float(np.abs(values).max()), 1e-9)  # (tokens,)
        if not deviation.max() <= _NOTABLE:
            token = int(np.argmax(~(deviation <= _NOTABLE)))
            where = f"{name} deviates first, by {deviation.max():.2g} of its largest value, from token {token}"
            if name.endswith(".self_attn") and deviation[:half].max(initial=0.0) <= _NOTABLE < deviation[half:].max():
                where += ": only behind cached tokens, so its cache is wrong"
            return where
    return "no single operation deviates notably; the error builds up over the layers"


def _trace(
    folder: Path, config: ModelConfig, tokens: list[int], names: tuple[str, ...]
) -> dict[str, NDArray[np.float32]]:
    """The named values for every token. Linears that share an input are one name there and several values here."""
    fused = {
        f"{fused_name(group)}.output": [apple.identifier(name.removesuffix(".weight")) + "_output" for name in group]
        for group in take_inventory(config).linears
    }
    parts = {name: fused.get(name, [apple.identifier(name)]) for name in names}
    parts[EMBEDDING.removesuffix(".weight")] = ["embedding"]
    if config.logits_scale == 1 and config.logits_softcap is None:
        parts[f"{fused_name((config.head_name,))}.output"] = [apple.LOGITS]
    wanted = [part for group in parts.values() for part in group]
    values = interpret(Interpreter(folder / PACKAGE, exact=True), tokens, wanted)
    return {name: np.concatenate([values[part] for part in group], -1) for name, group in parts.items()}
