"""The saved package evaluated exactly: fp32 throughout, through its states, prefill first and then decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export import apple
from ..export.config import ModelConfig
from .coreml_session import PACKAGE, decode_inputs, flexible_inputs, prefill_inputs
from .mil_interpreter import Interpreter

_DECODED = 4  # tokens at the end that go one by one; more of the same would prove nothing more

Values = dict[str, NDArray[np.float32]]  # by name, (tokens, width)


def exact_logits(folder: Path, config: ModelConfig, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits float32 (batch, tokens, vocab) of token ids (batch, tokens)."""
    return interpreted_logits(Interpreter(folder / PACKAGE, exact=True), tokens)


def interpreted_logits(interpreter: Interpreter, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of each row's tokens, each row a conversation of its own; InputError if they do not fit the context."""
    rows = [interpret(interpreter, row) for row in tokens.tolist()]
    return np.stack([row[apple.LOGITS] for row in rows])


def interpret(interpreter: Interpreter, tokens: list[int], wanted: Sequence[str] = ()) -> Values:
    """The logits and the ``wanted`` values of every token: two prompts through prefill, the last few through decode.

    So a padded chunk is followed by tokens that would see what padding has left behind, and both functions must agree
    about the cache. Of a flexible package the one function takes all parts.
    """
    context = interpreter.package.number("pocketlm.context")
    if len(tokens) > context:
        raise InputError(f"{len(tokens)} tokens do not fit the package's context of {context}")
    state = interpreter.new_state()
    parts: list[Values] = []
    position = 0
    for count in _counts(interpreter, len(tokens), state[apple.KEY_CACHE].shape[2]):
        function, inputs = _call(interpreter, tokens[position : position + count], position)
        # prefill gives the logits of one row; here the same operations are asked for every row, whatever it declares.
        outputs = interpreter.run(function, inputs, state, check_shapes=False, wanted=wanted)
        parts.append({name: outputs[name][0, :count] for name in (apple.LOGITS, *wanted)})
        position += count
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _counts(interpreter: Interpreter, length: int, slots: int) -> list[int]:
    """How many tokens each call takes."""
    names = interpreter.package.function_names
    chunk = interpreter.package.function("prefill").inputs[apple.TOKENS][1] if "prefill" in names else 0
    chunk = chunk or (length if "main" in names else 1)
    prompt = max(0, length - _DECODED)
    counts: list[int] = []
    for end in (prompt // 2, prompt):
        while (left := end - sum(counts)) > 0 and ("decode" not in names or sum(counts) + chunk <= slots):
            counts.append(min(left, chunk))
    return counts + [1] * (length - sum(counts))


def _call(
    interpreter: Interpreter, tokens: list[int], position: int
) -> tuple[str, dict[str, NDArray[np.int32]] | dict[str, NDArray[np.generic]]]:
    names = interpreter.package.function_names
    if "decode" not in names:
        return "main", flexible_inputs(tokens, position)
    if len(tokens) == 1:
        return "decode", decode_inputs(tokens[0], position)
    chunk = interpreter.package.function("prefill").inputs[apple.TOKENS][1]
    return "prefill", prefill_inputs(tokens, position, chunk, range(len(tokens)))
