"""`pocketlm device`: phones, and what takes their place."""

from __future__ import annotations

import click

from .cli_prepare import prepare_command


@click.group("device")
def device() -> None:
    """Phones, and what takes their place."""


device.add_command(prepare_command)
