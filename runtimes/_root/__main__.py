"""`python -m pocketlm` and the `pocketlm` command."""

import os
import signal
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    # torch's threads otherwise spin at every barrier: on a machine that is busy with anything else, verification took
    # 69 s instead of 13. It must be set before torch is imported, and costs nothing on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _clean_up_when_stopped()
        from .runtimes.cli import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to leave behind
        return 130


def _clean_up_when_stopped() -> None:
    """Let a request to end do what Ctrl-C does; one that is ignored (nohup) stays ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
