"""Compare our ExecuTorch export with the ecosystem's, on one model in one run.

Run: python benchmarks/executorch/compare.py MODEL [--peer-python VENV/bin/python]. MODEL is a folder or a .gguf file.
Each export has a process of its own; then both programs run in turns in one process. Prints Markdown. Machine and load
decide the figures: compare ratios, not seconds, with those of another day. --folder keeps the files and what they cost,
and takes them from there the next time: the peer's export takes minutes.
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
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        pythons = {"ours": sys.executable, "peer": options.peer_python}
        cost = {name: export(python, name, folder, options) for name, python in pythons.items()}
        files = [folder / f"{name}.pte" for name in LABELS]
        seconds = run(sys.executable, "timing.py", options.prompt, options.new, options.runs, *files, threads="1")
        print(table(cost, files, seconds, options))


def export(python: str, name: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """Seconds, CPU seconds and peak bytes of an export, which leaves ``folder``/NAME.pte."""
    file, noted = folder / f"{name}.pte", folder / f"{name}.json"
    if not (file.is_file() and noted.is_file()):
        noted.write_text(json.dumps(run(python, f"{name}.py", options.model, file, options.context)))
    cost: list[float] = json.loads(noted.read_text())
    return cost


def table(cost: dict[str, list[float]], files: list[Path], seconds: Any, options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        f"{options.prompt} prompt tokens, {options.new} new ones, median of {options.runs} runs in turns:\n",
        "| export | export s | CPU s | peak MB | file MB | prefill tok/s | decode tok/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, (wall, cpu, peak)), file in zip(cost.items(), files, strict=True):
        prefill, decode = (median(column) for column in zip(*seconds[str(file)], strict=True))
        lines.append(
            f"| {LABELS[name]} | {wall:.1f} | {cpu:.1f} | {peak / 1e6:.0f} | {file.stat().st_size / 1e6:.1f} "
            f"| {options.prompt / prefill:.0f} | {options.new / decode:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
