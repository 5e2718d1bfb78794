"""Which operation of an ONNX file deviates first from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..export.config import ModelConfig
from ..export.decoder import decoder
from ..export.recorder import Recorder
from ..export.to_torch import TorchOps
from ..quantize.store import Weights
from .onnx_exact import exact_graph, parts_of
from .onnx_session import MODEL_FILE, OnnxSession

_NOTABLE = 1e-3  # relative; float rounding stays below 1e-4 in every operation of the models measured


@torch.inference_mode()
def locate(folder: Path, config: ModelConfig, weights: Weights, tokens: NDArray[np.int64]) -> str:
    """One line: the first operation whose output deviates, by how much, and whether only behind cached tokens."""
    sequence = tokens[:1]
    expected: dict[str, NDArray[np.float32]] = {}
    ops = TorchOps(weights, config, sequence.shape[1])
    recorder = Recorder(ops, lambda name, value: expected.__setitem__(name, value[0].numpy()))
    decoder(recorder, config, torch.from_numpy(sequence))
    names = _values(folder)
    expected = {name: values for name, values in expected.items() if name in names}  # QMoE has none inside
    found = _trace(folder, sequence[0].tolist(), tuple(expected))
    half = sequence.shape[1] // 2
    for name, values in expected.items():
        if found[name].shape != values.shape:
            return f"{name} gives {found[name].shape[0]} rows for {values.shape[0]} tokens: it takes the wrong ones"
        deviation = np.abs(found[name] - values).max(-1) / max(float(np.abs(values).max()), 1e-9)  # (tokens,)
        if not deviation.max() <= _NOTABLE:
            where = (
                f"{name} deviates first, by {deviation.max():.2g} of its largest value, from token {_first(deviation)}"
            )
            if name.endswith(".self_attn") and deviation[:half].max(initial=0.0) <= _NOTABLE < deviation[half:].max():
                where += ": only behind cached tokens, so its cache is wrong"
            return where
    return "no single operation deviates notably; the error builds up over the layers"


def _values(folder: Path) -> set[str]:
    import onnx

    graph = onnx.load(folder / MODEL_FILE, load_external_data=False).graph
    return {output for node in graph.node for output in node.output}


def _first(deviation: NDArray[np.float32]) -> int:
    return int(np.argmax(~(deviation <= _NOTABLE)))


def _trace(folder: Path, sequence: list[int], names: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """The named tensors for every token, run in parts as for the exact evaluation."""
    session = OnnxSession(folder, model=exact_graph(folder, names))
    parts = [session.run_named(part, names) for part in parts_of(sequence)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
