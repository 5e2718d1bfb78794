"""Whether ExecuTorch's kernels compute what they must, proven where nothing amplifies their rounding.

A whole model with int8 activations amplifies every rounding that falls to the other side, so that it can only be held
against its own noise floor. A single operation, fed the same input, has nothing to amplify: it must agree to float
rounding. Here each operation of a decoder becomes a program of its own, with the real weights; then each layer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..export.config import EMBEDDING, Attention, Experts, Mlp, ModelConfig
from ..export.decoder import decoder, every_expert
from ..export.executorch_file import MODEL_FILE, PteFile
from ..export.executorch_graph import TOKENS, divide
from ..export.executorch_graph import Tensor as Recorded
from ..export.executorch_ops import ExecuTorchOps, Value
from ..export.executorch_plan import forward_plan
from ..export.to_executorch import write_executorch
from ..export.to_torch import TorchOps, reference_logits
from ..quantize.cache import Head
from ..quantize.store import CanonicalTensor, Weights
from ..quantize.tensor import QuantizedTensor
from .executorch_arithmetic import int8_per_head, int8_per_token
from .executorch_session import ExecuTorchSession, load_forward

EXACT = 1e-4  # relative to the largest value; float rounding stays below 1e-5
_ROWS = 2048  # of the vocabulary: every row of a table is the same operation
_TOKENS = 12
_DRAWS = 8

Write = Callable[[ExecuTorchOps, list[Value]], Value]


class Excerpt:
    """The weights of one layer as those of a model with that layer only, and a part of the vocabulary."""

    def __init__(self, weights: Weights, layer: int) -> None:
        self._weights = weights
        self._layer = layer

    def _name(self, name: object) -> object:
        return name.replace("model.layers.0.", f"model.layers.{self._layer}.") if isinstance(name, str) else name

    def __contains__(self, name: object) -> bool:
        return self._name(name) in self._weights

    def __iter__(self) -> Iterator[str]:
        own = f"model.layers.{self._layer}."
        for name in self._weights:
            if name.startswith(own) or not name.startswith("model.layers."):
                yield name.replace(own, "model.layers.0.")

    def __getitem__(self, name: str) -> CanonicalTensor:
        weight = self._weights[str(self._name(name))]
        if name not in (EMBEDDING, "lm_head.weight"):
            return weight
        return weight.rows(0, _ROWS) if isinstance(weight, QuantizedTensor) else weight[:_ROWS]


def one_layer_exactness(
    config: ModelConfig, weights: Weights, layers: Sequence[int] | None = None, int8_cache: bool = False
) -> dict[str, float]:
    """How far ExecuTorch is from the emulation, for every operation of some layers and for each of these layers whole.

    layers      which; None is the first, the middle and the last one
    int8_cache  whether the program keeps keys and values as int8

    Returns largest deviations relative to the largest value, by the names of operations; of a whole layer under
    ``model.layers.N``.
    """
    count = config.num_hidden_layers
    vocabulary = min(config.vocab_size, _ROWS)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (1, _TOKENS))
    found: dict[str, float] = {}
    for layer in sorted({0, count // 2, count - 1}) if layers is None else layers:
        part, excerpt = Excerpt(weights, layer), replace(config, layers=(config.layers[layer],), vocab_size=vocabulary)
        for name, deviation in operation_deviations(excerpt, part, tokens, int8_cache).items():
            named = name.replace("model.layers.0.", f"model.layers.{layer}.")
            found[named] = max(deviation, found.get(named, 0.0))
        found[f"model.layers.{layer}"] = _layer_deviation(excerpt, part, int8_cache)
    return found


def _layer_deviation(config: ModelConfig, weights: Weights, int8_cache: bool) -> float:
    """The largest deviation over all tokens, for the first draw of tokens in which no rounding falls to the other side.

    In most draws none does. If one did in each of them, or the layer is wrong, the best draw's.
    """
    best, cache = np.inf, _in_int8 if int8_cache else None
    with TemporaryDirectory() as scratch:
        write_executorch(Path(scratch), config, weights, _TOKENS, every_token=True, int8_cache=int8_cache)
        session = ExecuTorchSession(Path(scratch))
        for seed in range(_DRAWS):
            tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (1, _TOKENS))
            expected = reference_logits(weights, config, tokens, int8_per_token, cache=cache)[0]  # (tokens, vocab)
            session.reset()
            actual = np.concatenate([session.run_all(part) for part in parts_of(tokens[0].tolist())])
            best = min(best, float(np.abs(actual - expected).max() / np.abs(expected).max()))
            if best <= EXACT:
                break
    return best


def _in_int8(x: Tensor, layer: int, part: Head) -> Tensor:
    return int8_per_head(x)


def parts_of(sequence: list[int]) -> list[list[int]]:
    """A first half, a second half and the last token, so that what the cache holds matters."""
    half, last = len(sequence) // 2, len(sequence) - 1
    return [part for part in (sequence[:half], sequence[half:last], sequence[last:]) if part]


@torch.inference_mode()
def operation_deviations(
    config: ModelConfig, weights: Weights, tokens: NDArray[np.int64], int8_cache: bool = False
) -> dict[str, float]:
    """Every operation of the decoder as a program of its own, against the emulation, for tokens (1, tokens)."""
    witness = Witness(config, weights, tokens.shape[1], int8_cache)
    decoder(witness, config, torch.from_numpy(tokens))
    return witness.deviations


class Witness:
    """An Ops that computes with the emulation and has ExecuTorch compute the same from the same inputs."""

    def __init__(self, config: ModelConfig, weights: Weights, context: int, int8_cache: bool = False) -> None:
        self._int8_cache = int8_cache
        self._reference = TorchOps(weights, config, context, int8_per_token)
        self._config = config
        self._weights = weights
        self._context = context
        self.deviations: dict[str, float] = {}

    def _compare(
        self, name: str, expected: Tensor, inputs: Sequence[Tensor], write: Write, int8_cache: bool = False
    ) -> Tensor:
        """Note how far a program that ``write`` makes is from what is expected, (1, tokens, width)."""
        with TemporaryDirectory() as scratch:
            self._write(Path(scratch), [value.shape[-1] for value in inputs], write, int8_cache)
            forward = load_forward(Path(scratch) / MODEL_FILE)
            parts = [torch.tensor(part) for part in parts_of(list(range(expected.shape[1])))]
            calls = [[torch.zeros(1, len(part), dtype=torch.int64), part[:1]] for part in parts]
            outputs = [
                forward(call + [value[:, part].contiguous() for value in inputs])
                for call, part in zip(calls, parts, strict=True)
            ]
        actual = torch.cat(outputs, 1).reshape(expected.shape)
        scale = max(float(expected.abs().max()), 1e-9)
        difference = float((actual - expected).abs().max()) / scale
        self.deviations[name] = max(difference, self.deviations.get(name, 0.0)) if difference == difference else np.inf
        return expected

    def _write(self, folder: Path, widths: Sequence[int], write: Write, int8_cache: bool = False) -> None:
        file = PteFile(folder)
        try:
            ops = ExecuTorchOps(file, self._weights, self._config, self._context, True, int8_cache)
            given = [Recorded((1, TOKENS, width)) for width in widths]
            output = ops.compute(write(ops, list(given)))
            inputs = [ops.tokens, ops.position, *given]
            file.save([forward_plan(file, divide(ops.nodes, [output]), inputs, output, self._context)])
        finally:
            file.close()

    def embed(self, tokens: Tensor, name: str) -> Tensor:
        """See Ops. Token ids are whole numbers, which the program gets as such."""
        expected = self._reference.embed(tokens, name)
        with TemporaryDirectory() as scratch:
            self._write(Path(scratch), [], lambda ops, given: ops.embed(ops.tokens, name))
            actual = load_forward(Path(scratch) / MODEL_FILE)([tokens, torch.zeros(1, dtype=torch.int64)])
        self.deviations[name.removesuffix(".weight")] = float((actual - expected).abs().max() / expected.abs().max())
        return expected

    def linear(self, x: Tensor, names: tuple[str, ...]) -> Tensor:
        """See Ops. Each weight alone; with which others it is computed does not change what it computes."""
        for name in names:
            self._compare_one(x, name)
        return self._reference.linear(x, names)

    def _compare_one(self, x: Tensor, name: str) -> None:
        def write(ops: ExecuTorchOps, given: list[Value]) -> Value:
            return ops.linear(given[0], (name,))

        self._compare(name.removesuffix(".weight"), self._reference.linear(x, (name,)), [x], write)

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops."""
        expected = self._reference.rms_norm(x, name, epsilon)
        label = name.removesuffix(".weight")
        return self._compare(label, expected, [x], lambda ops, given: ops.rms_norm(given[0], name, epsilon))

    def add_norm(self, x: Tensor, residual: Tensor, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """See Ops."""
        expected, total = self._reference.add_norm(x, residual, name, epsilon)

        def write(ops: ExecuTorchOps, given: list[Value]) -> Value:
            return ops.add_norm(given[0], given[1], name, epsilon)[0]

        return self._compare(name.removesuffix(".weight"), expected, [x, residual], write), total

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """See Ops."""
        expected = self._reference.layer_norm(x, name, epsilon)
        label = name.removesuffix(".weight")
        return self._compare(label, expected, [x], lambda ops, given: ops.layer_norm(given[0], name, epsilon))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """See Ops."""
        return self._compare(name, x + y, [x, y], lambda ops, given: ops.add(given[0], given[1], name))

    def scale(self, x: Tensor, factor: float, name: str) -> Tensor:
        """See Ops."""
        expected = self._reference.scale(x, factor, name)
        return self._compare(f"{name}.scaled", expected, [x], lambda ops, given: ops.scale(given[0], factor, name))

    def soft_cap(self, x: Tensor, cap: float, name: str) -> Tensor:
        """See Ops."""
        expected = self._reference.soft_cap(x, cap, name)
        return self._compare(f"{name}.capped", expected, [x], lambda ops, given: ops.soft_cap(given[0], cap, name))

    def add_positions(self, x: Tensor, name: str) -> Tensor:
        """See Ops."""
        expected = self._reference.add_positions(x, name)
        return self._compare(name, expected, [x], lambda ops, given: ops.add_positions(given[0], name))

    def attention(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """See Ops. In three calls, the later ones over the cache of the earlier."""
        expected = self._reference.attention(qkv, layer, attention)

        def write(ops: ExecuTorchOps, given: list[Value]) -> Value:
            q, k, v = (ops.compute(value) for value in given)
            return ops.attend(q, k, v, layer, attention)

        widths = [attention.query_width, attention.kv_width, attention.kv_width]
        self._compare(f"model.layers.{layer}.self_attn", expected, list(qkv.split(widths, -1)), write)
        return self._attention_over_int8(qkv, layer, attention) if self._int8_cache else expected

    def _attention_over_int8(self, qkv: Tensor, layer: int, attention: Attention) -> Tensor:
        """The same over an int8 cache, fed heads that are normed and rotated already.

        Rotation is proven above; rounded in another order here, it would now and then move a code.
        """
        seen: list[Tensor] = []  # queries, keys and values, (1, heads, tokens, head_dim)

        def noted(x: Tensor, layer: int, part: Head) -> Tensor:
            seen.append(x)
            return int8_per_head(x)

        reference = TorchOps(self._weights, self._config, self._context, int8_per_token, cache=noted)
        expected = reference.attention(qkv, layer, attention)
        bare = replace(attention, rope=None, qk_norm=None)

        def write(ops: ExecuTorchOps, given: list[Value]) -> Value:
            q, k, v = (ops.compute(value) for value in given)
            return ops.attend(q, k, v, layer, bare)

        inputs = [x.transpose(1, 2).flatten(2) for x in seen]  # (1, tokens, width)
        return self._compare(f"model.layers.{layer}.self_attn over int8", expected, inputs, write, int8_cache=True)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See Ops."""
        expected = self._reference.gated(gate_up, activation)

        def write(ops: ExecuTorchOps, given: list[Value]) -> Value:
            return ops.gate(ops.compute(given[0]), ops.compute(given[1]), activation)

        return self._compare(f"{activation} gate", expected, list(gate_up.chunk(2, -1)), write)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """See Ops."""
        expected = self._reference.activate(x, activation)
        return self._compare(activation, expected, [x], lambda ops, given: ops.activate(given[0], activation))

    def experts(self, x: Tensor, layer: int, mlp: Mlp) -> Tensor:
        """See Ops."""
        return every_expert(self, x, layer, mlp)

    def route(self, logits: Tensor, layer: int, experts: Experts) -> Tensor:
        """See Ops."""
        expected = self._reference.route(logits, layer, experts)
        label = f"model.layers.{layer}.mlp.gate weights"
        return self._compare(label, expected, [logits], lambda ops, given: ops.route(given[0], layer, experts))

    def weigh(self, x: Tensor, weights: Tensor, layer: int, expert: int) -> Tensor:
        """See Ops."""
        return self._reference.weigh(x, weights, layer, expert)

    def last_token(self, x: Tensor) -> Tensor:
        """See Ops. All of them."""
        return x
