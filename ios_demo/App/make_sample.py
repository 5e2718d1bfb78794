"""Makes PocketLM/Sample anew: a bundle of the tests' small model, random weights in fp32. `python make_sample.py`

fp32, because its tolerance is the same on every Apple device: what it shows is that the app works.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))


def main() -> None:
    """Export into PocketLM/Sample, in place of what is there."""
    from pocketlm.runtimes.build import export
    from tiny import tiny_llama

    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llama(Path(folder) / "sample", context=256)
        export(str(model), HERE / "PocketLM" / "Sample", to=["coreml"], recipe="fp32", overwrite=True)


if __name__ == "__main__":
    main()
