"""The commands that answer: chat, and index for what answers are looked up in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .cli_shared import TARGET_NAMES, examples, json_option, opener, print_json, progress_for, with_lookup


@click.command(
    "chat",
    epilog=examples(
        "pocketlm chat smol",
        'pocketlm chat smol --prompt "What is the capital of France?"',
        "pocketlm chat smol --temperature 0.7 --top-p 0.9 --seed 1",
        "pocketlm chat smol --search facts.db --search wikipedia:en",
        'pocketlm chat smol --lookup --prompt "Correct the spelling: ..."',
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", type=click.Choice(TARGET_NAMES), help="Which artifact answers.  [default: the first there is]"
)
@click.option("--prompt", help="Answer this and end; without it, chat.")
@click.option("--system", help="System message.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, help="Only the k likeliest tokens.  [default: all]")
@click.option("--top-p", type=float, default=1.0, help="Only the likeliest tokens that make up p.  [default: 1]")
@click.option("--min-p", type=float, default=0.0, help="Only tokens at least p times as likely as the likeliest.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@click.option(
    "--search",
    "search_in",
    multiple=True,
    metavar="SOURCE",
    help="Answer from what is found there: an index file, searxng:URL or wikipedia:LANGUAGE. Repeatable.",
)
@click.option("--search-passages", type=click.IntRange(1, 10), default=1, show_default=True, help="Shown to the model.")
@click.option("--search-rewrite", is_flag=True, help="Let the model write the query, not the question's keywords.")
@with_lookup
@json_option
def chat_command(
    bundle: Path,
    target: str | None,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    threads: int,
    search_in: tuple[str, ...],
    search_passages: int,
    search_rewrite: bool,
    lookup: bool,
    lookup_tokens: int,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Chat with a bundle's model, or answer one prompt."""
    from ..export.bundle import read_manifest
    from .chat import chat
    from .sampling import Sampling
    from .search_chat import Search
    from .search_source import open_source
    from .verify import check_small_files, check_targets

    search = Search(tuple(map(open_source, search_in)), search_rewrite, search_passages) if search_in else None
    manifest = read_manifest(bundle)
    name = check_targets(bundle, manifest, [target] if target else None)[0]
    check_small_files(bundle, manifest)
    chat(
        bundle,
        opener(bundle, name, threads, lookup),
        prompt,
        system,
        Sampling(**sampling),
        max_new_tokens,
        as_json,
        search,
        lookup_tokens if lookup else None,
    )


@click.command(
    "index",
    epilog=examples("pocketlm index notes -o facts.db", "pocketlm chat smol --search facts.db"),
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The index: one SQLite file.")
@json_option
def index_command(folder: Path, output: Path, as_json: bool) -> None:
    """Index a folder's .txt, .md and .html files, for chat to answer from.

    Run it again to bring the index up to date: only files that changed are read.
    """
    from dataclasses import asdict

    from .search_index import index_folder

    report = index_folder(folder, output, progress_for(as_json))
    if as_json:
        print_json(asdict(report) | {"index": str(output)})
        return
    for line in report.skipped:
        click.echo(f"left out: {line}", err=True)
    megabytes, for_android = report.size_bytes / 1e6, report.android_bytes / 1e6
    click.echo(
        f"{output}: {report.passages} passages, {megabytes:.1f} MB ({for_android:.1f} MB of them for Android); "
        f"{report.added} files read, {report.unchanged} unchanged, {report.removed} removed"
    )
