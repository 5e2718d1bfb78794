"""Sessions over ONNX Runtime: the artifact as shipped, and the same file evaluated with fp32 activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .session import check_position, check_tokens

if TYPE_CHECKING:
    import onnxruntime

MODEL_FILE = "model.onnx"
ROWS_INPUT = "logit_rows"  # of a graph that onnx_rows made: the tokens whose logits are wanted
PROMPT_CHUNK = 512  # tokens: no slower than others, and activations take memory for each token of a call
# The matrix product sums more than 128 columns in blocks, and how many depends on whether there are more than
# 64 keys, counted within parts of the cache whose sizes are multiples of 32: where a head is wider, no call of
# ``run_rows`` goes past such a place.
_WIDE_HEAD = 128
_BLOCK = 32
_CACHE_TYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8}


def import_onnxruntime() -> Any:
    """The onnxruntime module; raises InputError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed; run: pip install 'pocketlm[onnx]'") from error
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def version() -> str:
    """What evaluates ONNX artifacts here."""
    return f"onnxruntime {import_onnxruntime().__version__} CPU"


class OnnxSession:
    """A conversation on ONNX Runtime, with a fixed cache that the graph updates in place (IO binding)."""

    def __init__(self, folder: Path, threads: int = 2, model: bytes | None = None) -> None:
        """Load ``folder``/model.onnx, or the graph given as ``model``, whose tensors lie in ``folder``.

        Raises InputError if the file is missing or ONNX Runtime refuses it.
        """
        self._runtime = import_onnxruntime()
        self._session = _load(self._runtime, folder, threads, model)
        self._context = int(self._session.get_modelmeta().custom_metadata_map["context"])
        self._vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self._chooses_rows = any(value.name == ROWS_INPUT for value in self._session.get_inputs())
        self._position = 0
        self._cache = {
            value.name: self._zeros((1, value.shape[1], self._context, value.shape[3]), _CACHE_TYPES[value.type])
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        self._wide = any(buffer.shape()[3] > _WIDE_HEAD for buffer in self._cache.values())
        self._tokens = np.zeros(self._context, np.int64)  # those in the cache
        self._mask = np.ones((1, self._context), np.int64)
        self._one_token = self._zeros((1, 1), np.int64)
        self._one_logits = self._zeros((1, 1, self._vocab_size), np.float32)
        self._decode = self._bind(self._one_token, [-1])
        self._decode.bind_ortvalue_output("logits", self._one_logits)

    def _zeros(self, shape: tuple[int, ...], dtype: type) -> onnxruntime.OrtValue:
        return self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))

    def _bind(self, tokens: onnxruntime.OrtValue, rows: Sequence[int]) -> onnxruntime.IOBinding:
        """A binding in which past and present are the same buffers; logits of ``rows`` if the graph lets choose."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("input_ids", tokens)
        if self._chooses_rows:
            binding.bind_cpu_input(ROWS_INPUT, np.array(rows, np.int64))
        for name, buffer in self._cache.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        return binding

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        return self._context

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def position(self) -> int:
        """Tokens in the cache now."""
        return self._position

    def reset(self) -> None:
        """Forget the conversation; what is left in the buffers is never looked at."""
        self._position = 0

    def truncate(self, position: int) -> None:
        """See RowsSession: the cache is positional, and what lies behind the position is never looked at."""
        check_position(self, position)
        self._position = position

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Session. A long prompt is run in chunks: activations take memory for each token of a call."""
        check_tokens(self, tokens)
        for part in chunks(tokens):
            logits = self._run(part, [len(part) - 1])
        last: NDArray[np.float32] = logits[-1]
        return last

    def run_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See RowsSession; only of a graph that ``onnx_rows.graph_with_rows`` made."""
        assert self._chooses_rows, "the shipped graph gives the last token's logits"
        check_tokens(self, tokens)
        room = _BLOCK - self._position % _BLOCK
        if not self._wide or len(tokens) <= room:
            return self._run(tokens, range(len(tokens)))
        parts = [tokens[:room], *(tokens[start : start + _BLOCK] for start in range(room, len(tokens), _BLOCK))]
        return np.concatenate([self._run(part, range(len(part))) for part in parts])

    def run_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits float32 (1 or tokens, vocab_size): of the last, or of all if the graph gives all."""
        check_tokens(self, tokens)
        return self._run(tokens, [len(tokens) - 1])

    def _run(self, tokens: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """The logits of ``rows``; where the graph lets choose them, an even number in a call of as many tokens.

        ONNX Runtime's kernels (1.32, x86-64) give a token the same bits in each of those: of one token alone the values
        are mixed by another kernel, and with 8 bits rows are multiplied two by two, the last odd one by itself.
        """
        if not self._chooses_rows:
            return self._call(tokens, rows)
        count = len(rows)
        rows = [*rows, *rows[-1:]][: count + count % 2]
        if len(tokens) % 2 == 0:
            return self._call(tokens, rows)[:count]
        start, end = self._position, self._position + len(tokens)
        if start and (end == self._context or (self._wide and end % _BLOCK == 0)):
            self._position -= 1  # no room behind: the token before is run again, and gets the same keys and values
            return self._call([int(self._tokens[start - 1]), *tokens], [row + 1 for row in rows])[:count]
        logits = self._call([*tokens, tokens[-1]][: self._context - start], rows)
        self._position = end
        return logits[:count]

    def _call(self, tokens: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        total = self._position + len(tokens)
        self._tokens[self._position : total] = tokens
        if len(tokens) == 1:
            self._one_token.update_inplace(np.array([tokens], np.int64))
            binding = self._decode
        else:
            binding = self._bind(self._runtime.OrtValue.ortvalue_from_numpy(np.array([tokens], np.int64)), rows)
            binding.bind_output("logits", "cpu")
        binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        self._session.run_with_iobinding(binding)
        self._position = total
        output = self._one_logits if len(tokens) == 1 else binding.get_outputs()[-1]
        logits: NDArray[np.float32] = output.numpy()[0]
        return logits

    def run_named(self, tokens: Sequence[int], names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Append tokens; the named outputs of the graph, each (tokens, width)."""
        check_tokens(self, tokens)
        total = self._position + len(tokens)
        binding = self._bind(self._runtime.OrtValue.ortvalue_from_numpy(np.array([tokens], np.int64)), [-1])
        for name in names:
            binding.bind_output(name, "cpu")
        binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        self._session.run_with_iobinding(binding)
        self._position = total
        return {name: value.numpy()[0] for name, value in zip(names, binding.get_outputs()[-len(names) :], strict=True)}


def chunks(tokens: Sequence[int], size: int = PROMPT_CHUNK) -> Iterator[Sequence[int]]:
    """The tokens in parts of at most ``size``, none of one token unless it is the only one.

    A call of one token takes other kernels, which round differently. Calls of several give the same bits however a
    prompt is cut, but for an odd number of tokens with 8 bits and for heads wider than 128.
    """
    start = 0
    while start < len(tokens):
        stop = start + size
        stop -= stop == len(tokens) - 1
        yield tokens[start:stop]
        start = stop


def _load(runtime: Any, folder: Path, threads: int, model: bytes | None) -> onnxruntime.InferenceSession:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = folder / MODEL_FILE
    if model is None and not path.is_file():
        raise InputError(f"{path} is missing; export the model again with --to onnx")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return runtime.InferenceSession(model or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen unrelated classes for a file it cannot use
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: ONNX Runtime cannot load it ({reason})") from error
