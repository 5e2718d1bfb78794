"""The command line. The cli_ files parse; each command is a public function of the same parameters elsewhere."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from .._version import __version__
from ..errors import InputError, ParityError
from .cli_bench import bench_command
from .cli_chat import chat_command, index_command
from .cli_device import device
from .cli_eval import eval_command
from .cli_export import export_command, fetch_command, inspect_command
from .cli_plan import plan_command
from .cli_report import report_command
from .cli_serve import serve_command
from .cli_shared import TARGET_NAMES, examples
from .cli_verify import compare_command, verify_command


def run(arguments: Sequence[str]) -> int:
    """Run one command; 0 done, 1 parity failed, 2 bad usage or input, 3 our own bug, 130 interrupted."""
    try:
        main.main(args=_spread(arguments), prog_name="pocketlm", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here
    except click.exceptions.Abort:
        print("interrupted; nothing half finished was left behind", file=sys.stderr)
        return 130
    except click.ClickException as error:
        print(f"pocketlm: {_one_line(error.format_message())}; {_usage(error)} --help", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"pocketlm: {_one_line(error)}", file=sys.stderr)
        return 2
    except ParityError as error:
        print(f"pocketlm: {_one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "the output cannot be written: "
        print(f"pocketlm: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("pocketlm: out of memory; close other programs or take a smaller model", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("pocketlm: this is a bug of pocketlm; please report it with the lines above", file=sys.stderr)
        return 3
    return 0


def _spread(arguments: Sequence[str]) -> list[str]:
    """``--to onnx coreml`` as ``--to onnx --to coreml``, and so on: click's options take one value each."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in ("--to", "--target", "--lengths") else ""
        elif option and (argument.isdecimal() if option == "--lengths" else argument in TARGET_NAMES):
            result += [option] if result[-1] != option else []
        result.append(argument)
    return result


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'pocketlm'}"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=examples(
        "pocketlm export smollm2-135m -o smol",
        "pocketlm verify smol",
        'pocketlm chat smol --prompt "What is the capital of France?"',
    ),
)
@click.version_option(__version__, package_name="pocketlm", prog_name="pocketlm")
def main() -> None:
    """Quantise a small language model once, ship the same integers to ExecuTorch, ONNX and Core ML, and prove it."""


for _command in (
    plan_command,
    export_command,
    verify_command,
    compare_command,
    eval_command,
    chat_command,
    index_command,
    serve_command,
    bench_command,
    report_command,
    inspect_command,
    fetch_command,
    device,
):
    main.add_command(_command)
