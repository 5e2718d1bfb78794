"""The command that times artifacts: bench."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .cli_shared import TARGET_NAMES, examples, json_option, print_json, progress_for


@click.command("bench", epilog=examples("pocketlm bench smol", "pocketlm bench smol --target onnx --json"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all]")
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@json_option
def bench_command(
    bundle: Path,
    target: tuple[str, ...],
    prompt_tokens: int,
    new_tokens: int,
    runs: int,
    threads: int,
    as_json: bool,
) -> None:
    """Measure load time, prefill and decode speed, and memory on this machine."""
    from .bench import bench, bench_table

    results = bench(bundle, target, prompt_tokens, new_tokens, runs, threads, progress_for(as_json))
    if as_json:
        print_json(results)
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(bench_table(results))
    for name, result in results["targets"].items():
        console.print(f"{name}: by {result['evaluated_by']}", soft_wrap=True)
