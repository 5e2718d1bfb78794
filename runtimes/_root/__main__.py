"""`python -m pocketlm` and the `pocketlm` command."""

import os
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    # torch's threads otherwise spin at every barrier: on a machine that is busy with anything else, verification took
    # 69 s instead of 13. It must be set before torch is imported, and costs nothing on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .runtimes.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
