"""Time .pte files in turns, in one process. Usage: python timing.py PROMPT NEW RUNS FILE...; prints JSON.

Both are called the same way, through executorch.runtime: tokens and positions in, logits out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def load(path: str) -> tuple[Any, bool]:
    """The method, and whether it wants every token's position rather than the first one's."""
    import executorch.kernels.quantized  # noqa: F401
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return (program, method), list(method.metadata.input_tensor_meta(1).sizes()) != [1]


def main() -> None:
    """Prefill and decode, one file after the other, again and again."""
    import torch

    prompt, new, runs = map(int, sys.argv[1:4])
    paths = sys.argv[4:]
    loaded = {path: load(path) for path in paths}
    ids = torch.randint(3, 400, (1, prompt + new), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[list[float]]] = {path: [] for path in paths}

    def call(path: str, start: int, stop: int) -> None:
        (_, method), every = loaded[path]
        positions = torch.arange(start, stop) if every else torch.tensor([start])
        method.execute([ids[:, start:stop].contiguous(), positions])

    for run in range(runs + 1):
        for path in paths:
            started = time.perf_counter()
            call(path, 0, prompt)
            middle = time.perf_counter()
            for position in range(prompt, prompt + new):
                call(path, position, position + 1)
            if run:  # the first run also allocates
                seconds[path].append([middle - started, time.perf_counter() - middle])
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
