"""A session over ExecuTorch's runtime: the artifact as shipped."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.executorch_file import MODEL_FILE
from ..export.executorch_schema import MISSING, package_folder
from .pte_check import check_program
from .session import check_tokens

if TYPE_CHECKING:
    from torch import Tensor

_CUSTOM_OPS = "extension/llm/custom_ops/libcustom_ops_aot_lib.so"
_QUANTIZED_OPS = "kernels/quantized/libquantized_ops_aot_lib.so"
PREFILL_TOKENS = 512  # tokens of one call: more would take more working memory and be no faster


@functools.lru_cache(maxsize=1)
def import_executorch() -> tuple[Any, Any]:
    """torch and ExecuTorch's runtime with all kernels we use; raises InputError if they are not installed.

    The bindings are imported as what they are, a library beside torch: executorch.runtime is a thin layer over them,
    and importing it takes ten seconds more, because for the class of one warning it imports the whole exporter.
    """
    package = package_folder()
    with _quiet():
        try:
            import torch
            from executorch.extension.pybindings import _C

            for library in (_CUSTOM_OPS, _QUANTIZED_OPS):
                torch.ops.load_library(package / library)
        except (ImportError, OSError) as error:
            raise InputError(f"{MISSING} ({error})") from error
    return torch, _C


@functools.cache
def _pool(process: int) -> list[int]:
    """How many threads ExecuTorch's pool got in this process: nothing, or one number."""
    return []


def _start_pool(threads: int) -> None:
    """Size the one pool of threads. The first session decides, because every program keeps the pool that it found."""
    decided = _pool(os.getpid())
    if not decided:
        decided.append(threads)
        import_executorch()[1]._unsafe_reset_threadpool(threads)


def version() -> str:
    """What evaluates ExecuTorch artifacts here."""
    return f"executorch {importlib.metadata.version('executorch')} XNNPACK"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what native code writes on standard error: reports on processors, several lines for each program."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


@functools.lru_cache(maxsize=1)
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch brings for Linux; None elsewhere."""
    torch, _ = import_executorch()
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ctypes.CDLL(str(libraries[0])) if libraries else None


@contextmanager
def _without_openmp() -> Iterator[None]:
    """Keep OpenMP to one thread while a program runs.

    Each thread of ExecuTorch's pool multiplies small matrices in its attention with torch's BLAS, which would start
    threads of its own and wait for them: a sixth of a prefill's time, and on a busy machine nearly all of it.
    """
    openmp = _openmp()
    if openmp is None:
        yield
        return
    levels = openmp.omp_get_max_active_levels()
    openmp.omp_set_max_active_levels(0)
    try:
        yield
    finally:
        openmp.omp_set_max_active_levels(levels)


def load_forward(path: Path) -> Callable[[list[Tensor]], Tensor]:
    """The method forward of a program that has no other; the program lives as long as what is returned."""
    _, runtime = import_executorch()
    with _quiet():
        program = runtime._load_program(str(path))
        method = program.load_method("forward")

    def forward(inputs: list[Tensor]) -> Tensor:
        assert program is not None  # it owns the memory that its method works in
        with _without_openmp():
            (output,) = method(inputs)
        result: Tensor = output
        return result

    return forward


class ExecuTorchSession:
    """A conversation on ExecuTorch; the program keeps its cache in its own memory."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        """Load ``folder``/model.pte; ``threads`` is for the whole process, since ExecuTorch has one pool of them.

        Raises InputError if the file is missing, damaged, or made for another version of ExecuTorch.
        """
        path = folder / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing; export the model again with --to executorch")
        held = check_program(path)
        self._torch, runtime = import_executorch()
        with _quiet():
            _start_pool(threads)
            try:
                # The program must outlive its method: it owns the memory that the method works in.
                whole = runtime.Verification.InternalConsistency
                self._program = runtime._load_program(str(path), program_verification=whole)
                self._forward = self._program.load_method("forward")
                self._context = self._ask("get_max_context_len")
                self._most = min(self._ask("get_max_seq_len"), PREFILL_TOKENS)
                self._vocab_size = self._ask("get_vocab_size")
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"{path}: {version()} cannot load it, it is damaged or made for another version; "
                    f"export the model again ({reason})"
                ) from error
        if not 0 < self._most <= self._context == (held or self._context) or self._vocab_size < 1:
            raise InputError(
                f"{path}: says {self._context} tokens of context, {self._most} a call and {self._vocab_size} logits, "
                f"and its caches hold {held}; export the model again"
            )
        self._position = 0

    def _ask(self, name: str) -> int:
        return int(self._program.load_method(name)([])[0])

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
        """Forget the conversation; what is left in the cache is never looked at."""
        self._position = 0

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Session. A long prompt goes in several calls, ``PREFILL_TOKENS`` each."""
        logits: NDArray[np.float32] = self.run_all(tokens)[-1]
        return logits

    def run_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; float32 (n, vocab_size): logits of each call's last token, all if it gives them."""
        check_tokens(self, tokens)
        chunks = [tokens[start : start + self._most] for start in range(0, len(tokens), self._most)]
        logits = [self._call(chunk) for chunk in chunks]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _call(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        ids = self._torch.tensor([tokens], dtype=self._torch.int64)
        position = self._torch.tensor([self._position], dtype=self._torch.int64)
        try:
            with _without_openmp():
                (output,) = self._forward([ids, position])
        except RuntimeError as error:
            raise InputError(f"ExecuTorch could not run the model ({str(error).strip().splitlines()[0]})") from error
        self._position += len(tokens)
        logits: NDArray[np.float32] = output.numpy()[0]
        return logits
