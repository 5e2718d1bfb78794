"""What `eval` found, for people: a table of recipes, a table of layers, and two pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .evaluate import Evaluation
from .quality import Interval
from .svg import Labels, line_chart, scatter
from .write_files import write_files

if TYPE_CHECKING:
    from rich.table import Table

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def quality_table(found: Evaluation) -> Table:
    """One row for each candidate; means with half the width of their 95 % interval."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption="± half of the 95 % confidence interval", caption_justify="left")
    for head in ("", "MB", "perplexity", "against source", "KL", "same top token"):
        table.add_column(head, justify="right" if head else "left")
    if found.source is not None:
        table.add_row("source, fp32", "", _plain(found.source.perplexity, 2), "", "", "")
    for name, candidate in found.candidates.items():
        quality = candidate.quality
        table.add_row(
            name,
            f"{candidate.size_bytes / 1e6:.1f}",
            _plain(quality.perplexity, 2),
            _percent(quality.perplexity_ratio, -1.0),
            _plain(quality.kl, 4),
            _percent(quality.top1, 0.0),
        )
    return table


def _half(found: Interval) -> float:
    return (found.high - found.low) / 2


def _plain(found: Interval | None, digits: int) -> str:
    return "-" if found is None else f"{found.mean:.{digits}f} ± {_half(found):.{digits}f}"


def _percent(found: Interval | None, shift: float) -> str:
    if found is None:
        return "-"
    return f"{100 * (found.mean + shift):{'+' if shift else ''}.1f} ± {100 * _half(found):.1f} %"


def layer_table(errors: Mapping[str, float]) -> Table:
    """One row for each layer, one column for each thing that a layer computes: relative errors in percent."""
    from rich import box
    from rich.table import Table

    rows = by_layer(errors)
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))
    table = Table(title="Relative error by layer, %", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("layer", justify="right")
    for head in heads:
        table.add_column(head, justify="right")
    for layer, row in rows.items():
        table.add_row(str(layer), *(f"{100 * row[head]:.1f}" if head in row else "" for head in heads))
    return table


def by_layer(errors: Mapping[str, float]) -> dict[int, dict[str, float]]:
    """Errors by layer, then by a short name: ``mlp.gate_proj+up_proj.output`` becomes ``gate+up``."""
    rows: dict[int, dict[str, float]] = {}
    for name, error in errors.items():
        match = _LAYER.fullmatch(name)
        if match:
            rows.setdefault(int(match.group(1)), {})[_short(match.group(2))] = error
    return rows


def _short(name: str) -> str:
    leaf = name.removesuffix(".output").rpartition(".")[2]
    return leaf.replace("_proj", "").replace("_layernorm", "").replace("post_attention", "after").replace("self_", "")


def write_pictures(found: Evaluation, folder: Path) -> list[Path]:
    """Draw errors by layer and size against KL into the folder, as SVG; the files written.

    Raises InputError if there was no source to compare with, or the folder cannot be written.
    """
    kl = {name: (c.size_bytes / 1e6, c.quality.kl.mean) for name, c in found.candidates.items() if c.quality.kl}
    if not kl:
        raise InputError("there is nothing to draw without a source model; give --recipe, or --reference for a bundle")
    pictures = {
        "size_against_kl.svg": scatter(
            Labels("Size against KL", "size of the weights, MB", "KL to the source, nats"), kl
        ),
        "error_by_layer.svg": line_chart(
            Labels("Error of the residual stream", "layer", "relative error behind the layer's norm, %"),
            {name: _stream(candidate.layer_errors or {}) for name, candidate in found.candidates.items()},
        ),
    }
    return write_files(folder, pictures)


def _stream(errors: Mapping[str, float]) -> list[tuple[float, float]]:
    """What the first norm of each layer gives, which is the sum of all before it."""
    return [(float(layer), 100 * next(iter(row.values()))) for layer, row in by_layer(errors).items()]
