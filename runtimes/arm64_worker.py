"""The arm64 side of a session: serves an artifact through a pipe. ``data/arm64_runner.cpp`` speaks the same.

python -m pocketlm.runtimes.arm64_worker onnx|executorch FOLDER THREADS [GRAPH]

All numbers are little-endian int32. Each request is a count and so many tokens; the first, of none, loads the
artifact, later ones of none forget the conversation. Answers: 0, context, vocabulary, most tokens of a call to the
first; rows and rows x vocabulary floats to the others; -1, a length and a text when something fails. A single 0
says that the process is there and has loaded nothing yet.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from .executorch_session import ExecuTorchSession
    from .onnx_session import OnnxSession

FAILED = -1


def serve(kind: str, folder: Path, threads: int, graph: Path | None, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end."""

    def put(*numbers: int) -> None:
        answers.write(struct.pack(f"<{len(numbers)}i", *numbers))

    def tokens() -> list[int] | None:
        head = requests.read(4)
        if len(head) < 4:
            return None
        count = struct.unpack("<i", head)[0]
        return list(struct.unpack(f"<{count}i", requests.read(4 * count)))

    put(0)
    answers.flush()
    if tokens() is None:
        return
    session = _open(kind, folder, threads, graph)
    put(0, session.context, session.vocab_size, session.context)
    answers.flush()
    while (wanted := tokens()) is not None:
        if wanted:
            logits = np.ascontiguousarray(session.run_all(wanted), np.dtype("<f4"))
            put(len(logits))
            answers.write(logits.data)
        else:
            session.reset()
            put(0)
        answers.flush()


def _open(kind: str, folder: Path, threads: int, graph: Path | None) -> OnnxSession | ExecuTorchSession:
    if kind == "onnx":
        from .onnx_session import OnnxSession

        return OnnxSession(folder, threads, None if graph is None else graph.read_bytes())
    from .executorch_session import ExecuTorchSession

    return ExecuTorchSession(folder, threads)


def main(arguments: list[str]) -> None:
    """Serve through standard input and output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    kind, folder, threads, *graph = arguments
    try:
        serve(kind, Path(folder), int(threads), Path(graph[0]) if graph else None, sys.stdin.buffer, answers)
    except Exception as error:  # whatever it is, the other side must hear of it
        text = ("out of memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__).encode()
        answers.write(struct.pack("<2i", FAILED, len(text)) + text)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
