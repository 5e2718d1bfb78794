"""What the commands share: options, JSON, progress, the certificate as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .certificate import Certificate
    from .session import Session

TARGET_NAMES = ("onnx", "executorch", "coreml")

adapter_option = click.option(
    "--adapter", multiple=True, metavar="DIR[=WEIGHT]", help="LoRA adapter to merge first; may be repeated."
)
cache_option = click.option(
    "--cache",
    type=click.Choice(("float", "int8")),
    default="float",
    show_default=True,
    help="How artifacts keep keys and values. int8 takes a quarter of the memory; Core ML has no such cache.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts, and no progress.")

lookup_options = (
    click.option(
        "--lookup",
        is_flag=True,
        help="Guess what the text had before, several tokens a call: faster where answers quote. ONNX only.",
    ),
    click.option(
        "--lookup-tokens",
        type=click.IntRange(0, 15),
        default=7,
        show_default=True,
        help="Guesses a call with --lookup. Any number gives the same answer, 0 guesses nothing; without --lookup a "
        "token alone takes kernels that round differently, and an answer may differ.",
    ),
)


def with_lookup(command: Callable[..., None]) -> Callable[..., None]:
    """The options of guessing, for a command that answers."""
    for option in reversed(lookup_options):
        command = option(command)
    return command


def opener(bundle: Path, name: str, threads: int, lookup: bool) -> Callable[[], Session]:
    """What opens the artifact of target ``name``; raises InputError if it shall guess and cannot."""
    from .targets import get_target

    target = get_target(name)
    if not lookup:
        return lambda: target.open_session(bundle / name, threads)
    open_rows = target.open_rows
    if open_rows is None:
        raise InputError(f"--lookup needs the logits of several tokens, {name} gives the last one's; use --target onnx")
    return lambda: open_rows(bundle / name, threads)


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
