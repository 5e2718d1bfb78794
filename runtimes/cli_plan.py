"""The command that tells before any work is done: plan. And what `export --dry-run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..quantize.recipe import DEFAULT_RECIPE
from .cli_shared import TARGET_NAMES, cache_option, examples, json_option, print_json

if TYPE_CHECKING:
    from .plan import Plan


@click.command(
    "plan",
    epilog=examples(
        "pocketlm plan smollm2-135m",
        "pocketlm plan ./my-model --device galaxy-s22 --device iphone-13 --context 4096",
        "pocketlm plan ./my-model/config.json --recipe int8 --to onnx --json",
    ),
)
@click.argument("model")
@click.option("--device", multiple=True, metavar="NAME", help="A phone or laptop of devices.toml; may be repeated.")
@click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="As for export.")
@click.option("--context", type=int, help="Tokens that the cache holds.  [default: 2048, or the model's limit]")
@click.option("--to", multiple=True, type=click.Choice(TARGET_NAMES), help="Targets.  [default: all that can]")
@cache_option
@json_option
def plan_command(
    model: str,
    device: tuple[str, ...],
    recipe: str,
    context: int | None,
    to: tuple[str, ...],
    cache: str,
    as_json: bool,
) -> None:
    """Estimate sizes, memory and speed of MODEL on phones, from its configuration alone.

    MODEL is a folder, its config.json, a .gguf file, a Hub id (of which config.json is downloaded), or smollm2-135m.
    """
    from ..export.caches import has_cache
    from .plan import plan

    able = [name for name in TARGET_NAMES if has_cache(name, cache)]
    show_plan(plan(model, devices=device, recipe=recipe, context=context, to=to or able, cache=cache), as_json)


def show_plan(found: Plan, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print_json(found.to_json())
        return
    from rich.console import Console

    from .plan_table import plan_tables, remarks

    console = Console(highlight=False)
    for part in plan_tables(found):
        console.print(part, soft_wrap=isinstance(part, str))
    for line in remarks(found):
        console.print(line, soft_wrap=True)
