"""One of pocketlm's recipes. Usage: python ours.py MODEL RECIPE OUT; OUT is a file of canonical weights."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes.progress import on_terminal
from pocketlm.runtimes.quantise_model import open_source, write_canonical


def main() -> None:
    """Quantise without what earlier runs left in the cache, but for the checkpoint itself."""
    model, recipe, out = sys.argv[1:]
    checkpoint = open_checkpoint(model)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["POCKETLM_CACHE"] = cache
        source = open_source(checkpoint, parse_config(checkpoint.config), None)
        write_canonical(source, load_recipe(recipe), Path(out), on_terminal)


if __name__ == "__main__":
    main()
