"""One runtime with one file, in a process of its own. Usage: python worker.py KIND PATH THREADS CONTEXT

KIND: onnx or executorch (PATH: a folder of a bundle), genai (a folder), llama.cpp (a .gguf file). Prints a line of JSON
when it is loaded; then answers lines: "LENGTH NEW" with the seconds of a prefill of LENGTH tokens and of NEW greedy
steps behind it, "memory" with its peak, "kl IDS LOGITS" with the mean KL of what it says to the source's logits (two
.npy files: ids (sequences, tokens), and float32 logits behind each). Tokens are the same for every runtime.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Player(Protocol):
    """What is timed: ``start`` runs a prompt and gives its first token, ``step`` gives the next."""

    def start(self, tokens: list[int]) -> None:
        """A new conversation."""

    def step(self) -> None:
        """One more token, the likeliest."""

    def logits(self, token: int, first: bool) -> NDArray[np.float32]:
        """Behind one more token (vocabulary,); the first of a new conversation, if ``first``."""


class Argmax:
    """A session with ``reset`` and ``run``, whose logits are looked at here."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._token = 0

    def start(self, tokens: list[int]) -> None:
        """See Player."""
        self._session.reset()
        self._token = int(self._session.run(tokens).argmax())

    def step(self) -> None:
        """See Player."""
        self._token = int(self._session.run([self._token]).argmax())

    def logits(self, token: int, first: bool) -> NDArray[np.float32]:
        """See Player."""
        if first:
            self._session.reset()
        found: NDArray[np.float32] = self._session.run([token])
        return found


class Genai:
    """onnxruntime-genai's generator, which chooses tokens itself."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime_genai

        self._genai, self._context = onnxruntime_genai, context
        config = onnxruntime_genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._generator: Any = None

    def start(self, tokens: list[int]) -> None:
        """See Player. Making the generator, with its cache, counts."""
        self._append(tokens, first=True)
        self._generator.generate_next_token()

    def step(self) -> None:
        """See Player."""
        self._generator.generate_next_token()

    def logits(self, token: int, first: bool) -> NDArray[np.float32]:
        """See Player."""
        self._append([token], first)
        found: NDArray[np.float32] = self._generator.get_logits().reshape(-1)
        return found

    def _append(self, tokens: list[int], first: bool) -> None:
        if first:
            parameters = self._genai.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self._context, min_length=self._context, do_sample=False)
            self._generator = self._genai.Generator(self._model, parameters)
        self._generator.append_tokens(np.array(tokens, np.int32))


def open_player(kind: str, path: Path, threads: int, context: int) -> Player:
    """The runtime, with the file loaded."""
    if kind == "llama.cpp":
        from llamacpp import LlamaCpp

        return Argmax(LlamaCpp(path, threads, context))
    if kind == "genai":
        return Genai(path, threads, context)
    from pocketlm.runtimes.targets import get_target

    return Argmax(get_target(kind).open_session(path, threads))


def memory(field: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def warm_up(player: Player, tokens: list[int]) -> None:
    """A short conversation: the turn before was another's, and its weights are in the processor's cache."""
    player.start(tokens[:16])
    for _ in range(16):
        player.step()


def mean_kl(player: Player, ids: NDArray[np.int64], wanted: NDArray[np.float32]) -> float:
    """KL(source || runtime) in nats, over all tokens, fed one by one."""
    total = 0.0
    for row, expected in zip(ids, wanted, strict=True):
        for index, token in enumerate(row.tolist()):
            source, actual = (_log_softmax(x) for x in (expected[index], player.logits(token, index == 0)))
            total += float(np.exp(source) @ (source - actual))
    return total / ids.size


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def timed(player: Player, tokens: list[int], new: int) -> dict[str, float]:
    """Seconds of both phases, warmed up."""
    warm_up(player, tokens)
    started = time.perf_counter()
    player.start(tokens)
    first = time.perf_counter()
    for _ in range(new):
        player.step()
    return {"prefill_seconds": first - started, "decode_seconds": time.perf_counter() - first}


def main() -> None:
    """Answer lines."""
    kind, path, threads, context = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    started = time.perf_counter()
    player = open_player(kind, path, threads, context)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    tokens = np.random.default_rng(0).integers(10, 30000, context).tolist()
    for line in sys.stdin:
        match line.split():
            case ["memory"]:
                answer = {"peak_bytes": float(memory("VmHWM"))}
            case ["kl", ids, wanted]:
                answer = {"kl": mean_kl(player, np.load(ids), np.load(wanted, mmap_mode="r"))}
            case [length, new]:
                answer = timed(player, tokens[: int(length)], int(new))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
