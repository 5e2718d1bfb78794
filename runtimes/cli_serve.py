"""The command that answers programs: serve."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .cli_shared import TARGET_NAMES, examples, opener, with_lookup


@click.command(
    "serve",
    epilog=examples(
        "pocketlm serve smol",
        "curl 127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\",
        '  -d \'{"messages": [{"role": "user", "content": "Hello"}]}\'',
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", type=click.Choice(TARGET_NAMES), help="Which artifact answers.  [default: the first there is]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but this machine's own needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--waiting", type=click.IntRange(0), default=16, show_default=True, help="Requests that may wait.")
@click.option("--max-seconds", type=click.FloatRange(1), default=300, show_default=True, help="Of one answer.")
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@with_lookup
def serve_command(
    bundle: Path,
    target: str | None,
    host: str,
    port: int,
    waiting: int,
    max_seconds: float,
    threads: int,
    lookup: bool,
    lookup_tokens: int,
) -> None:
    """Answer programs that speak OpenAI's API, with a bundle's artifact.

    /v1/models, /v1/completions (echo, logprobs) and /v1/chat/completions (streaming, stop, seed). One answer is made at
    a time, others wait. On other addresses than this machine's own, every request needs a token: the one in
    POCKETLM_SERVE_TOKEN, or one that is printed.
    """
    from ..export.bundle import read_manifest
    from .serve import serve
    from .verify import check_small_files, check_targets

    manifest = read_manifest(bundle)
    name = check_targets(bundle, manifest, [target] if target else None)[0]
    check_small_files(bundle, manifest)
    serve(
        bundle,
        opener(bundle, name, threads, lookup),
        manifest.name,
        host,
        port,
        waiting,
        max_seconds,
        lambda line: click.echo(line, err=True),
        lookup_tokens if lookup else None,
    )
