"""The command that shows a bundle to people: report."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_shared import examples, json_option, print_json, progress_for


@click.command(
    "report",
    epilog=examples(
        "pocketlm report smol -o report.html",
        "pocketlm report smol -o report.html --card README.md --base-model org/name",
        "pocketlm report smol -o report.html --evaluation eval.json --bench bench.json",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The page, one HTML file.")
@click.option("--card", type=click.Path(path_type=Path), help="A model card for the Hub as well, in Markdown.")
@click.option("--base-model", metavar="ORG/NAME", help="The source's name on the Hub, for the card.")
@click.option(
    "--evaluation", multiple=True, type=click.Path(path_type=Path), help="What eval --json printed; may be repeated."
)
@click.option(
    "--bench",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What bench --json or a phone's app wrote; as often.",
)
@click.option("--plan", multiple=True, type=click.Path(path_type=Path), help="What plan --json printed; as often.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@json_option
def report_command(
    bundle: Path,
    output: Path,
    card: Path | None,
    base_model: str | None,
    evaluation: tuple[Path, ...],
    bench: tuple[Path, ...],
    plan: tuple[Path, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a page about BUNDLE: model, sizes, certificate, errors by layer, and what was measured.

    One HTML file that runs no script and loads nothing. Only what the bundle records or the given files hold is shown.
    """
    from .make_report import make_report

    written = make_report(
        bundle,
        output,
        card=card,
        base_model=base_model,
        evaluations=evaluation,
        benches=bench,
        plans=plan,
        overwrite=overwrite,
        progress=progress_for(as_json),
    )
    if as_json:
        print_json(written)
        return
    click.echo(f"{written['headline']}")
    for line in written["lines"]:
        click.echo(f"  {line}")
    for path in (output, card):
        if path is not None:
            click.echo(f"Wrote {path}")
