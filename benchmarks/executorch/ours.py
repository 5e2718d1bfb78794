"""Our way to a .pte, rounding to nearest as the peer does; prints seconds and peak bytes as JSON.

Usage: python ours.py MODEL OUT.pte CONTEXT.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Export once, from the checkpoint to the file."""
    started = time.perf_counter(), time.process_time()
    from pocketlm.export.canonical import quantize_checkpoint
    from pocketlm.export.config import parse_config
    from pocketlm.export.inventory import take_inventory
    from pocketlm.export.open_checkpoint import open_checkpoint
    from pocketlm.export.to_executorch import write_executorch
    from pocketlm.quantize.recipe import load_recipe
    from pocketlm.quantize.store import CanonicalFile, save_pieces

    out, context = Path(sys.argv[2]), int(sys.argv[3])
    checkpoint = open_checkpoint(sys.argv[1])
    config = parse_config(checkpoint.config)
    biases = [name for name in checkpoint.names() if name.endswith(".bias")]
    names = [*take_inventory(config).weights, *biases]
    tensors = quantize_checkpoint(checkpoint, names, load_recipe("int4-rtn"), lambda error: None)
    canonical = out.with_suffix(".safetensors")
    save_pieces(canonical, names, tensors)
    write_executorch(out.parent, config, CanonicalFile(canonical), context)
    (out.parent / "model.pte").replace(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1], peak]))


if __name__ == "__main__":
    main()
