"""Compare our ExecuTorch export with the ecosystem's, on one model in one run.

Run: python benchmarks/executorch/compare.py MODEL [--peer-python VENV/bin/python]. MODEL is a folder or a .gguf file.
Each export has a process of its own; then both programs run in turns in one process. Prints Markdown. Machine and load
decide the figures: compare ratios, not seconds, with those of another day.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
LABELS = {"ours": "pocketlm", "peer": "transformers + torchao + XNNPACK lowering"}


def run(python: str, script: str, *arguments: object, threads: str | None = None) -> Any:
    """What a script prints last, as JSON. OpenMP stays out of the timed runs: both would have it inside their pool."""
    environment = dict(os.environ, **({"OMP_NUM_THREADS": threads} if threads else {}))
    command = [python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def main() -> None:
    """Export both ways, time both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.pte" for name in LABELS}
        pythons = {"ours": sys.executable, "peer": options.peer_python}
        cost = {
            name: run(pythons[name], f"{name}.py", options.model, file, options.context) for name, file in files.items()
        }
        seconds = run(
            sys.executable, "timing.py", options.prompt, options.new, options.runs, *files.values(), threads="1"
        )
        print(f"{options.prompt} prompt tokens, {options.new} new ones, median of {options.runs} runs in turns\n")
        print("| export | export s | CPU s | peak MB | file MB | prefill tok/s | decode tok/s |")
        print("|---|---|---|---|---|---|---|")
        for name, file in files.items():
            wall, cpu, peak = cost[name]
            prefill, decode = (median(column) for column in zip(*seconds[str(file)], strict=True))
            print(
                f"| {LABELS[name]} | {wall:.1f} | {cpu:.1f} | {peak / 1e6:.0f} | {file.stat().st_size / 1e6:.1f} "
                f"| {options.prompt / prefill:.0f} | {options.new / decode:.0f} |"
            )


if __name__ == "__main__":
    main()
