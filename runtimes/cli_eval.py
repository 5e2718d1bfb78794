"""The command that measures what a model lost: eval."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_shared import examples, json_option, print_json, progress_for


@click.command(
    "eval",
    epilog=examples(
        "pocketlm eval smol --text mine.txt --reference smollm2-135m",
        "pocketlm eval smollm2-135m --text mine.txt --recipe int4 --recipe int4-rtn --pictures out",
    ),
)
@click.argument("subject", metavar="BUNDLE|MODEL")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="What to read, in UTF-8.")
@click.option("--recipe", multiple=True, help="Quantise MODEL by this recipe; may be given again.")
@click.option("--reference", help="The source model of BUNDLE, to compare with.")
@click.option("--calibration", type=click.Path(path_type=Path), help="As for export.")
@click.option("--tokens", type=click.IntRange(1), default=20480, show_default=True, help="At most so many.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for two pictures (SVG).")
@json_option
def eval_command(
    subject: str,
    text: Path,
    recipe: tuple[str, ...],
    reference: str | None,
    calibration: Path | None,
    tokens: int,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Measure what quantised weights keep: perplexity, KL, top-1 agreement.

    A bundle is compared with --reference, a model is quantised by each --recipe. Activations stay in fp32.
    """
    from .evaluate import evaluate
    from .evaluation_report import layer_table, quality_table, write_pictures

    found = evaluate(
        subject,
        text,
        recipes=recipe,
        reference=reference,
        calibration=calibration,
        tokens=tokens,
        progress=progress_for(as_json),
    )
    drawn = [] if pictures is None else write_pictures(found, pictures)
    if as_json:
        print_json(found.to_json())
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(quality_table(found))
    for name, candidate in found.candidates.items():
        if candidate.layer_errors is not None:
            console.print(name, layer_table(candidate.layer_errors))
    click.echo(f"{found.tokens} tokens in {found.sequences} pieces")
    for path in drawn:
        click.echo(f"Picture: {path}")
