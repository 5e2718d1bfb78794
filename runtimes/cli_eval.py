"""The command that measures what a model lost, and what it can: eval."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .cli_shared import TARGET_NAMES, examples, json_option, print_json, progress_for

_TEXT_ONLY = ("recipe", "reference", "calibration", "tokens", "pictures")
_TASKS_ONLY = (
    "target", "threads", "against", "against_model", "key_env", "max_calls", "timeout", "price_in", "price_out",
    "scoring", "limit", "max_new_tokens", "results", "fresh", "output",
)  # fmt: skip
_ENDPOINT_ONLY = ("against_model", "key_env", "max_calls", "timeout", "price_in", "price_out")


@click.command(
    "eval",
    epilog=examples(
        "pocketlm eval smol --text mine.txt --reference smollm2-135m",
        "pocketlm eval smollm2-135m --text mine.txt --recipe int4 --recipe int4-rtn --pictures out",
        "pocketlm eval smol --tasks general_knowledge",
        "pocketlm eval smol --tasks mine.jsonl --against http://127.0.0.1:8080/v1 -o out",
    ),
)
@click.argument("subject", metavar="BUNDLE|MODEL")
@click.option("--text", type=click.Path(path_type=Path), help="What to read, in UTF-8: perplexity, KL, top-1.")
@click.option("--recipe", multiple=True, help="With --text: quantise MODEL by this recipe; may be given again.")
@click.option("--reference", help="With --text: the source model of BUNDLE, to compare with.")
@click.option("--calibration", type=click.Path(path_type=Path), help="As for export.")
@click.option("--tokens", type=click.IntRange(1), default=20480, show_default=True, help="At most so many.")
@click.option("--pictures", type=click.Path(path_type=Path), help="With --text: folder for two pictures (SVG).")
@click.option("--tasks", metavar="FILE|NAME", help="Questions: JSON lines, general_knowledge, or bigbench:TASK.")
@click.option(
    "--target", type=click.Choice(TARGET_NAMES), help="Which artifact answers.  [default: the first there is]"
)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@click.option("--limit", type=click.IntRange(1), help="Ask so many items: always the same ones.")
@click.option(
    "--scoring", type=click.Choice(("auto", "likelihood", "generated")), default="auto", show_default=True,
    help="Of choices. auto: by log-likelihood, unless the endpoint gives none.",
)  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), default=48, show_default=True, help="Of an answer.")
@click.option("--against", metavar="URL", help="An OpenAI-compatible endpoint that is asked the same.")
@click.option("--against-model", metavar="NAME", help="Its model.  [default: the only one it lists]")
@click.option("--key-env", metavar="VARIABLE", help="The environment's variable that holds its key.")
@click.option("--max-calls", type=click.IntRange(1), help="Send it no more requests than that, retries included.")
@click.option("--timeout", type=click.FloatRange(1), default=120, show_default=True, help="Seconds for one request.")
@click.option("--price-in", type=click.FloatRange(0), help="Of a million tokens that it reads.")
@click.option("--price-out", type=click.FloatRange(0), help="Of a million tokens that it writes.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of finished answers.  [default: in the cache]")
@click.option("--fresh", is_flag=True, help="Forget finished answers, ask again.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for report.md, .json and .svg.")
@json_option
@click.pass_context
def eval_command(context: click.Context, /, subject: str, text: Path | None, tasks: str | None, **options: Any) -> None:
    """Measure what quantised weights keep (--text), or what a bundle can (--tasks).

    With --text a bundle is compared with --reference, a model is quantised by each --recipe; activations stay in fp32.
    With --tasks the artifact itself answers questions, and so does the endpoint of --against: the same prompts,
    the same scoring. Finished answers are kept; the same command goes on where it was ended.
    """
    if (text is None) == (tasks is None):
        raise InputError("eval takes either --text FILE or --tasks FILE|NAME")
    given = {name for name in options if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}
    _refuse(given & set(_TASKS_ONLY if text is not None else _TEXT_ONLY), "--tasks" if text is not None else "--text")
    if options["against"] is None:
        _refuse(given & set(_ENDPOINT_ONLY), "--against")
    if text is not None:
        _eval_text(subject, text, options)
    elif tasks is not None:
        _eval_tasks(subject, tasks, options)


def _refuse(names: set[str], needed: str) -> None:
    for name in sorted(names):
        raise InputError(f"--{name.replace('_', '-')} goes with {needed}; leave it out, or add {needed}")


def _eval_text(subject: str, text: Path, options: dict[str, Any]) -> None:
    from .evaluate import evaluate
    from .evaluation_report import layer_table, quality_table, write_pictures

    found = evaluate(
        subject,
        text,
        recipes=options["recipe"],
        reference=options["reference"],
        calibration=options["calibration"],
        tokens=options["tokens"],
        progress=progress_for(options["as_json"]),
    )
    drawn = [] if options["pictures"] is None else write_pictures(found, options["pictures"])
    if options["as_json"]:
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


def _eval_tasks(subject: str, tasks: str, options: dict[str, Any]) -> None:
    from .task_report import lines, table, to_json, write_report
    from .task_run import Against, run_tasks
    from .task_sources import open_task
    from .tasks import limited

    progress = progress_for(options["as_json"])
    against = options["against"] and Against(
        options["against"],
        model=options["against_model"],
        key_env=options["key_env"],
        most_calls=options["max_calls"],
        seconds=options["timeout"],
        price_in=options["price_in"],
        price_out=options["price_out"],
    )
    found = run_tasks(
        Path(subject),
        limited(open_task(tasks, progress), options["limit"]),
        target=options["target"],
        threads=options["threads"],
        against=against,
        scoring=options["scoring"],
        max_new_tokens=options["max_new_tokens"],
        results=options["results"],
        fresh=options["fresh"],
        progress=progress,
    )
    content = to_json(found)
    written = [] if options["output"] is None else write_report(found, options["output"], json.dumps(content, indent=1))
    if options["as_json"]:
        print_json(content)
        return
    from rich.console import Console

    Console(highlight=False).print(table(found))
    for line in lines(found):
        click.echo(line)
    for path in written:
        click.echo(f"Written: {path}")
