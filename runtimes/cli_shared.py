"""What the commands share: options, JSON, progress, the certificate as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .certificate import Certificate

TARGET_NAMES = ("onnx", "executorch", "coreml")

adapter_option = click.option(
    "--adapter", multiple=True, metavar="DIR[=WEIGHT]", help="LoRA adapter to merge first; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts, and no progress.")


def progress_for(as_json: bool) -> Any:
    """Progress on the terminal, or none for scripts."""
    from .progress import on_terminal, silent

    return silent if as_json else on_terminal


def print_json(content: object) -> None:
    """One JSON document on the output."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def show_certificate(certificate: Certificate) -> None:
    """The table, and what ran each target."""
    from rich.console import Console

    from .report import certificate_table, describe

    console = Console(highlight=False)
    console.print(certificate_table(certificate))
    for name, target in certificate.targets.items():
        console.print(f"{name}: {describe(target)}", soft_wrap=True)
        for note in target.notes:
            console.print(f"  {note}", soft_wrap=True)
