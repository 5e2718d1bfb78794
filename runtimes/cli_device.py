"""`pocketlm device`: phones, and what takes their place. Parsing only; the work is in device.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ParityError
from .cli_prepare import prepare_command
from .cli_shared import json_option, print_json, progress_for

if TYPE_CHECKING:
    from .device_results import DeviceResults

_serial = click.option("--serial", help="Which phone, if several are connected.")
_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_timeout = click.option("--timeout", type=float, default=1800.0, show_default=True, help="Seconds to wait for the app.")
_target = click.option(
    "--target", type=click.Choice(("onnx", "executorch", "coreml")), help="[default: the first that the app runs]"
)


@click.group("device")
def device() -> None:
    """Phones, and what takes their place: put a bundle on one, and let it verify and measure there."""


@device.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List connected phones."""
    from .device import list_phones, phones_json

    phones = list_phones()
    if as_json:
        print_json(phones_json(phones))
        return
    for phone in phones:
        click.echo(f"{phone.serial}  {phone.platform}  {phone.model or 'unknown model'}  {phone.state}")
    if not phones:
        click.echo("no phone is connected; plug one in and allow USB debugging on it")


@device.command("install")
@_bundle
@click.option("--app", type=click.Path(path_type=Path), help="Install this app too (an .apk or .ipa).")
@click.option(
    "--facts", type=click.Path(path_type=Path), help="An index of `pocketlm index`, for the app to look facts up in."
)
@_serial
@json_option
def install_command(bundle: Path, app: Path | None, facts: Path | None, serial: str | None, as_json: bool) -> None:
    """Copy BUNDLE to a phone. A copy that was cut off goes on where it was; every file is proven by its hash."""
    from .device import bundle_name, install

    phone = install(bundle, app, serial, progress_for(as_json), facts)
    if as_json:
        print_json({"serial": phone.serial, "bundle": bundle_name(bundle)})
    else:
        click.echo(f"{bundle_name(bundle)} is on {phone.model or phone.serial}")


@device.command("verify")
@_bundle
@_target
@_serial
@_timeout
@json_option
def verify_command(bundle: Path, target: str | None, serial: str | None, timeout: float, as_json: bool) -> None:
    """Replay BUNDLE's golden file on a phone that has it. Exit code 1: the phone computes something else."""
    from ..export.bundle import read_manifest
    from .device import Task, bundle_name, run
    from .device_results import verify_table

    manifest = read_manifest(bundle)
    task = Task(bundle_name(bundle), target, verify=True)
    results = run(task, serial, timeout, progress_for(as_json))
    _check_same(bundle, results)
    print_json(results.content) if as_json else _print(verify_table(results, manifest.certificate))
    if not results.verify or not results.passed:
        raise ParityError(f"{results.model} does not compute what {manifest.name} computes")


@device.command("bench")
@_bundle
@_target
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: half of the phone's cores]")
@click.option(
    "--sustained", type=click.IntRange(0), default=0, help="Then go on for so many seconds, to see it get warm."
)
@click.option("--host/--no-host", default=True, show_default=True, help="Measure this computer too.")
@_serial
@_timeout
@json_option
def bench_command(
    bundle: Path,
    target: str | None,
    host: bool,
    serial: str | None,
    timeout: float,
    as_json: bool,
    sustained: int,
    **numbers: Any,
) -> None:
    """Measure BUNDLE on a phone that it is installed on, beside this computer."""
    from .bench import bench
    from .device import BenchSettings, Task, bundle_name, run
    from .device_results import compare_table

    task = Task(bundle_name(bundle), target, bench=BenchSettings(**numbers, sustained_seconds=sustained))
    results = run(task, serial, timeout, progress_for(as_json))
    _check_same(bundle, results)
    if as_json:
        print_json(results.content)
        return
    here = None
    if host and results.bench is not None:
        names = list(results.bench["targets"])
        here = bench(
            bundle,
            names,
            numbers["prompt_tokens"],
            numbers["new_tokens"],
            numbers["runs"],
            progress=progress_for(False),
        )
    _print(compare_table([results], here))


def _check_same(bundle: Path, results: DeviceResults) -> None:
    """Raise InputError if the phone has another export under this name."""
    from ..errors import InputError
    from ..export.bundle import MANIFEST_FILE, hash_file

    if hash_file(bundle / MANIFEST_FILE).sha256 != results.manifest_sha256:
        raise InputError(
            f"{results.model} has another export of {results.bundle}; repeat: pocketlm device install {bundle}"
        )


def _print(table: object) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


device.add_command(prepare_command)
