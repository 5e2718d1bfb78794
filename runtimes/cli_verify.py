"""The commands that judge bundles: verify, compare."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ParityError
from .cli_shared import TARGET_NAMES, adapter_option, examples, json_option, print_json, progress_for, show_certificate


@click.command(
    "verify",
    epilog=examples(
        "pocketlm verify smol",
        "pocketlm verify smol --target onnx --reference smollm2-135m",
        "pocketlm verify smol --json --junit parity.xml",
        "pocketlm verify smol --on arm64:cortex-a53 --device galaxy-a02s",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all in the bundle]"
)
@click.option("--reference", help="The source model, to measure quantization and total again.")
@adapter_option
@click.option("--no-hashes", is_flag=True, help="Judge files that were changed since the export as they are.")
@click.option(
    "--on", multiple=True, metavar="PLACE", help="host, arm64 or arm64:CORE; may be given again.  [default: host]"
)
@click.option("--device", help="A phone's memory for arm64, or none.  [default: the least that has such a core]")
@click.option("--sequences", type=click.IntRange(1), help="Replay only so many answers and pieces of prose.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML for CI.")
@json_option
def verify_command(
    bundle: Path,
    target: tuple[str, ...],
    reference: str | None,
    adapter: tuple[str, ...],
    no_hashes: bool,
    on: tuple[str, ...],
    device: str | None,
    sequences: int | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Prove that a bundle's artifacts compute what their model computes.

    Exit code 0: every check passed; 1: parity failed; 2: the bundle cannot be judged.
    """
    from .report import check_junit, failure_lines, write_junit
    from .verify import verify

    if junit is not None:
        check_junit(junit)
    certificate = verify(
        bundle,
        target,
        reference,
        adapters=adapter,
        hashes=not no_hashes,
        on=on,
        device=device,
        sequences=sequences,
        progress=progress_for(as_json),
    )
    if junit is not None:
        write_junit(junit, certificate)
    if as_json:
        print_json(certificate.to_json())
    else:
        show_certificate(certificate)
    if not certificate.passed:
        raise ParityError("; ".join(failure_lines(certificate)[:4]))


@click.command(
    "compare",
    epilog=examples(
        "pocketlm compare main/pocketlm.json smol",
        "pocketlm compare old.json new.json --worse total.kl=0.1 --worse size=0.02",
        "pocketlm compare old.json new.json --markdown > comment.md",
    ),
)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--worse", multiple=True, metavar="NAME=SHARE", help="How much worse a value may be; inf is any.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table, as a comment on a pull request.")
@json_option
def compare_command(old: Path, new: Path, worse: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Tell what changed between two certificates.

    OLD and NEW are bundles, or what export or verify printed with --json. Exit code 1: something got worse.
    """
    from .compare import allowed_changes, compare, markdown_table, terminal_table

    comparison = compare(old, new, allowed_changes(worse))
    if as_json:
        print_json(comparison.to_json())
    elif markdown:
        click.echo(markdown_table(comparison), nl=False)
    else:
        from rich.console import Console

        Console(highlight=False).print(terminal_table(comparison))
    if comparison.worse:
        raise ParityError(f"worse than {old}: {'; '.join(comparison.worse[:4])}")
