"""The command that judges bundles: verify."""

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
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all in the bundle]"
)
@click.option("--reference", help="The source model, to measure quantization and total again.")
@adapter_option
@click.option("--no-hashes", is_flag=True, help="Judge files that were changed since the export as they are.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML for CI.")
@json_option
def verify_command(
    bundle: Path,
    target: tuple[str, ...],
    reference: str | None,
    adapter: tuple[str, ...],
    no_hashes: bool,
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
        bundle, target, reference, adapters=adapter, hashes=not no_hashes, progress=progress_for(as_json)
    )
    if junit is not None:
        write_junit(junit, certificate)
    if as_json:
        print_json(certificate.to_json())
    else:
        show_certificate(certificate)
    if not certificate.passed:
        raise ParityError("; ".join(failure_lines(certificate)[:4]))
