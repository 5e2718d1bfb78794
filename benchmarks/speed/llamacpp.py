"""llama.cpp through its own C interface, in the library that the package xllamacpp carries.

The structs of parameters change with the version. They are taken from the library's own defaults as plain words, and
the four that are set here are found by the values of their defaults, which are checked: another layout is an error.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shared import library

_WORDS = 256  # larger than any of the structs; both are passed by value, in memory
_CONTEXT_DEFAULTS = {0: 512, 1: 2048, 2: 512, 3: 1, 7: 4, 8: 4}  # word -> n_ctx, n_batch, n_ubatch, n_seq_max, threads


class _Parameters(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * _WORDS),)


class _Batch(ctypes.Structure):
    """llama_batch: tokens without positions continue the sequence; logits of the last are computed."""

    _fields_ = (("count", ctypes.c_int32), *((f"pointer{i}", ctypes.c_void_p) for i in range(6)))


def interface() -> ctypes.CDLL:
    """The library with the types of what is called here."""
    found = library()
    pointer, parameters = ctypes.c_void_p, _Parameters
    for name, result, arguments in (
        ("llama_model_default_params", parameters, []),
        ("llama_context_default_params", parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, parameters]),
        ("llama_init_from_model", pointer, [pointer, parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_batch_get_one", _Batch, [pointer, ctypes.c_int32]),
        ("llama_decode", ctypes.c_int32, [pointer, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_log_set", None, [pointer, pointer]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


class LlamaCpp:
    """A conversation: prompts in batches of 512 tokens, as llama.cpp's own tools run them."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._library = interface()
        self._silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer := ctypes.c_void_p)(
            lambda *_: None
        )
        self._library.llama_log_set(ctypes.cast(self._silence, pointer), None)
        model = self._library.llama_model_load_from_file(str(path).encode(), self._library.llama_model_default_params())
        assert model, f"llama.cpp does not load {path}"
        parameters = self._library.llama_context_default_params()
        found = {word: parameters.words[word] for word in _CONTEXT_DEFAULTS}
        assert found == _CONTEXT_DEFAULTS, f"another version of llama.cpp: {found}"
        parameters.words[0], parameters.words[1], parameters.words[2] = context, 512, 512
        parameters.words[7] = parameters.words[8] = threads
        self._context = self._library.llama_init_from_model(model, parameters)
        assert self._context, "llama.cpp makes no context"
        self._memory = self._library.llama_get_memory(self._context)
        self.vocab_size = int(self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(model)))

    def reset(self) -> None:
        """Forget the conversation."""
        self._library.llama_memory_clear(self._memory, False)

    def run(self, tokens: list[int]) -> NDArray[np.float32]:
        """Append tokens; logits (vocab_size,) of the last."""
        for start in range(0, len(tokens), 512):
            part = np.array(tokens[start : start + 512], np.int32)
            batch = self._library.llama_batch_get_one(part.ctypes.data, part.size)
            status = self._library.llama_decode(self._context, batch)
            assert status == 0, f"llama_decode gives {status}"
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocab_size,))
