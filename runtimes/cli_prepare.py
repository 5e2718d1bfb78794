"""The command `device prepare`: what takes a phone's place."""

from __future__ import annotations

import click

from .cli_shared import json_option, print_json, progress_for


@click.command("prepare")
@click.argument("what", type=click.Choice(("arm64",)))
@click.option("--mirror", help="Of the Debian archive.  [default: that of this machine's apt]")
@click.option("--force", is_flag=True, help="Prepare again, even if it is there.")
@json_option
def prepare_command(what: str, mirror: str | None, force: bool, as_json: bool) -> None:
    """Prepare what `verify --on arm64` runs artifacts in: an arm64 user space and an emulator.

    About 185 MB are downloaded and 190 MB kept, in the cache folder; nothing is installed, no root is needed.
    """
    from .arm64_prepare import prepare

    lane = prepare(mirror=mirror, force=force, progress=progress_for(as_json))
    path = None if lane is None else str(lane.folder)
    if as_json:
        print_json({"prepared": what, "path": path})
    else:
        click.echo("this machine is arm64 itself: there is nothing to prepare" if path is None else path)
