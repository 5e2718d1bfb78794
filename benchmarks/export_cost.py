"""What an export costs: time and peak memory, with and without verification. Run: python benchmarks/export_cost.py

Each figure is taken in a process of its own. Prints a Markdown table. Machine and load decide the figures: compare
ratios, not seconds, with those of another day.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

LOWER = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.quantize.store import CanonicalFile, save_pieces
from pocketlm.runtimes.target import Details
from pocketlm.runtimes.targets import get_target
model, recipe, target, folder = sys.argv[1:]
folder = Path(folder)
checkpoint = open_checkpoint(model)
names = list(checkpoint.names())
tensors = quantize_checkpoint(checkpoint, names, load_recipe(recipe), lambda error: None)
save_pieces(folder / "canonical.safetensors", names, tensors)
quantized = time.perf_counter()
config, weights = parse_config(checkpoint.config), CanonicalFile(folder / "canonical.safetensors")
get_target(target).write(folder, config, weights, 2048, Details())
print(json.dumps([quantized - started, time.perf_counter() - quantized,
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""

WHOLE = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from pocketlm.runtimes.build import export
model, recipe, target, folder = sys.argv[1:]
export(model, Path(folder) / "bundle", to=[target], recipe=recipe)
print(json.dumps([time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def measure(script: str, *arguments: str) -> list[float]:
    """Run a script in its own process; the numbers it prints last."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, folder],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},  # as the command line sets it
        )
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Measure the targets and recipes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", nargs="+", default=["int4-rtn"])
    parser.add_argument("--targets", nargs="+", default=["onnx"])
    options = parser.parse_args()
    print("| target | recipe | quantise, s | write, s | peak MB | with verification, s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for target in options.targets:
        for recipe in options.recipes:
            quantize, write, peak = measure(LOWER, options.model, recipe, target)
            whole, whole_peak = measure(WHOLE, options.model, recipe, target)
            print(
                f"| {target} | {recipe} | {quantize:.1f} | {write:.1f} | {peak / 1e6:.0f} "
                f"| {whole:.1f} | {whole_peak / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
