"""The command that times artifacts: bench."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import InputError
from .cli_shared import TARGET_NAMES, examples, json_option, print_json, progress_for


@click.command(
    "bench",
    epilog=examples(
        "pocketlm bench smol",
        "pocketlm bench smol --lengths 16 512 1900 --target onnx --json",
        "pocketlm bench smol --import phone.json",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all]")
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--lengths",
    multiple=True,
    type=click.IntRange(1),
    help="Several numbers of prompt tokens instead.",
)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@click.option(
    "--import", "files", multiple=True, type=click.Path(path_type=Path), help="Show what a phone's app measured, too."
)
@json_option
def bench_command(
    bundle: Path | None,
    target: tuple[str, ...],
    prompt_tokens: int,
    lengths: tuple[int, ...],
    new_tokens: int,
    runs: int,
    threads: int,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure load time, prefill and decode speed, and memory on this machine."""
    from .bench import bench
    from .bench_table import bandwidth_line, bench_table, load_table
    from .device_results import compare_table, read_results_file

    if bundle is None and not files:
        raise InputError("name a bundle to measure, or a phone's results with --import")
    devices = [read_results_file(file) for file in files]
    here = None
    if bundle is not None:
        here = bench(bundle, target, prompt_tokens, new_tokens, runs, threads, progress_for(as_json), lengths)
    if as_json:
        print_json((here or {}) | {"devices": [found.content for found in devices]} if devices else here)
        return
    from rich.console import Console

    console = Console(highlight=False)
    if devices or here is None:
        console.print(compare_table(devices, here))
    else:
        console.print(bench_table(here))
        console.print(load_table(here))
        console.print(bandwidth_line(here), soft_wrap=True)
    for name, result in (here or {"targets": {}})["targets"].items():
        console.print(f"{name}: by {result['evaluated_by']}", soft_wrap=True)
