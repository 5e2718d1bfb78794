"""`optimum-cli export pocketlm`: found by optimum in its namespace ``optimum.commands.register``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand
from pocketlm.quantize.recipe import DEFAULT_RECIPE

_TASKS = ("auto", "text-generation", "text-generation-with-past")
_FORMATS = ("int4", "int8", "fp16", "fp32")


class PocketlmExportCommand(BaseOptimumCLICommand):
    """What `pocketlm export` does, under the flags of optimum's exporters."""

    COMMAND = CommandInfo(name="pocketlm", help="Export a language model for phones, with a parity certificate.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("-m", "--model", required=True, help="Hub id, folder, .gguf file, or smollm2-135m.")
        parser.add_argument("output", help="Folder of the bundle.")
        parser.add_argument("--task", choices=_TASKS, default="auto", help="Only text generation.")
        parser.add_argument(
            "--to", nargs="+", choices=("onnx", "executorch", "coreml"), default=["onnx"], help="Targets."
        )
        recipe = parser.add_mutually_exclusive_group()
        recipe.add_argument("--recipe", default=DEFAULT_RECIPE, help="As of `pocketlm export`.")
        recipe.add_argument("--weight-format", choices=_FORMATS, dest="recipe", help="The recipe of that name.")
        parser.add_argument("--context", type=int, help="Tokens that the cache holds.")
        parser.add_argument("--adapter", action="append", default=[], metavar="DIR[=WEIGHT]", help="LoRA to merge.")
        parser.add_argument("--overwrite", action="store_true", help="Replace the bundle if it is there.")
        parser.add_argument("--trust-remote-code", action="store_true", help="Refused: no foreign code is run.")

    def run(self) -> None:
        """Export; ends the process with `pocketlm export`'s exit code."""
        from pocketlm.runtimes.cli import run

        given = self.args
        if given.trust_remote_code:
            print("pocketlm: --trust-remote-code: pocketlm never runs code that comes with a model", file=sys.stderr)
            sys.exit(2)
        arguments = ["export", given.model, "-o", given.output, "--recipe", given.recipe]
        arguments += [part for target in given.to for part in ("--to", target)]
        arguments += [part for adapter in given.adapter for part in ("--adapter", adapter)]
        arguments += [] if given.context is None else ["--context", str(given.context)]
        arguments += ["--overwrite"] if given.overwrite else []
        sys.exit(run(arguments))


REGISTER_COMMANDS = [(PocketlmExportCommand, ExportCommand)]
