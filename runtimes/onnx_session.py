"""Sessions over ONNX Runtime: the artifact as shipped, and the same file evaluated with fp32 activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .session import check_tokens

if TYPE_CHECKING:
    import onnxruntime

MODEL_FILE = "model.onnx"


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
        self._last_only = self._session.get_outputs()[0].shape[1] == 1
        self._position = 0
        self._cache = {
            value.name: self._zeros((1, value.shape[1], self._context, value.shape[3]), np.float32)
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        self._mask = np.ones((1, self._context), np.int64)
        self._one_token = self._zeros((1, 1), np.int64)
        self._one_logits = self._zeros((1, 1, self._vocab_size), np.float32)
        self._decode = self._bind(self._one_token)
        self._decode.bind_ortvalue_output("logits", self._one_logits)

    def _zeros(self, shape: tuple[int, ...], dtype: type) -> onnxruntime.OrtValue:
        return self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))

    def _bind(self, tokens: onnxruntime.OrtValue) -> onnxruntime.IOBinding:
        """A binding in which past and present are the same buffers."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("input_ids", tokens)
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

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Session."""
        logits: NDArray[np.float32] = self.run_all(tokens)[-1]
        return logits

    def run_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits float32 (1 or tokens, vocab_size): of the last, or of all if the graph gives all."""
        check_tokens(self, tokens)
        total = self._position + len(tokens)
        if len(tokens) == 1:
            self._one_token.update_inplace(np.array([tokens], np.int64))
            binding = self._decode
        else:
            binding = self._bind(self._runtime.OrtValue.ortvalue_from_numpy(np.array([tokens], np.int64)))
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
        binding = self._bind(self._runtime.OrtValue.ortvalue_from_numpy(np.array([tokens], np.int64)))
        for name in names:
            binding.bind_output(name, "cpu")
        binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        self._session.run_with_iobinding(binding)
        self._position = total
        return {name: value.numpy()[0] for name, value in zip(names, binding.get_outputs()[-len(names) :], strict=True)}


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
