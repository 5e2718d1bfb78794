"""The pictures of a report: inline SVG that is coloured by the page's style and as wide as its column.

Across, everything is placed in percent, so that a picture fits a phone without its letters shrinking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .plain_text import plain
from .report_facts import ERRORS, error_limits, kl_text, layer_columns, layer_errors, megabytes, target_sizes
from .report_peers import Peers
from .report_read import ReportData

_LEFT, _RIGHT = 6.0, 94.0  # percent: labels of an axis are centred on its ends
_ROW, _HEAD, _AXIS = 40, 28, 26  # pixels
_LONGEST_NAME = 26  # characters beside a figure on a narrow screen
_MOST_CELLS = 20000  # of a picture of layers: beyond, a page would take seconds to draw


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis between two powers of ten."""

    low: int
    high: int

    def place(self, value: float) -> float:
        """Percent from the left; what lies outside is put at the end."""
        exponent = math.log10(value) if value > 0 else self.low
        share = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return _LEFT + share * (_RIGHT - _LEFT)


def certificate_picture(data: ReportData) -> str:
    """Each error of each target as a dot over a logarithmic axis, with its limit and the noise floor; "" if none."""
    values = {
        (error, name): getattr(target, error)
        for error in ERRORS
        for name, target in data.certificate.targets.items()
        if getattr(target, error) is not None
    }
    if not values:
        return ""
    allowed = error_limits(data)
    floors = {key: found.noise_floor_kl for key, found in values.items() if found.noise_floor_kl is not None}
    axis = _axis([*(found.kl for found in values.values()), *allowed.values(), *floors.values()])
    parts: list[str] = []
    y = 0
    for error in ERRORS:
        rows = [key for key in values if key[0] == error]
        if rows:
            parts.append(_text("0", y + 20, error, "strong"))
            y += _HEAD
        for key in rows:
            parts += _error_row(y, key[1], values[key].kl, allowed.get(key), floors.get(key), axis)
            y += _ROW
    said = "; ".join(f"{name} {error} {kl_text(found.kl)}" for (error, name), found in values.items())
    return _picture(
        "certificate", "Errors of each artifact", f"KL in nats: {said}.", y + _AXIS, [*_grid(axis, y), *parts]
    )


def _axis(values: Sequence[float]) -> _Axis:
    exponents = [math.log10(value) for value in values if math.isfinite(value) and value > 0] or [0.0]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    return _Axis(max(low, -18), max(high, low + 1, -17))


def _grid(axis: _Axis, bottom: int) -> list[str]:
    parts = []
    for exponent in range(axis.high, axis.low - 1, -max(1, math.ceil((axis.high - axis.low) / 5))):
        x = axis.place(10.0**exponent)
        parts.append(_line(x, 0, bottom, "grid"))
        parts.append(_text(f"{x:.2f}%", bottom + 18, f"1e{exponent}" if exponent else "1", "small", "middle"))
    return parts


def _error_row(y: int, name: str, value: float, limit: float | None, floor: float | None, axis: _Axis) -> list[str]:
    shown = kl_text(value) + (f", limit {kl_text(limit)}" if limit is not None else "")
    middle = y + 28
    parts = [
        _text("0", y + 14, plain(name, _LONGEST_NAME), ""),
        _text("100%", y + 14, shown, "", "end"),
        f'<line class="track" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{middle}" y2="{middle}"/>',
    ]
    if floor is not None:
        parts.append(_line(axis.place(floor), middle - 11, middle + 11, "floor"))
    if limit is not None:
        parts.append(_line(axis.place(limit), middle - 8, middle + 8, "limit"))
    if math.isfinite(value):
        kind = "dot bad" if limit is not None and value > limit else "dot"
        parts.append(f'<circle class="{kind}" cx="{axis.place(value):.2f}%" cy="{middle}" r="6"/>')
    return parts


def size_picture(data: ReportData) -> str:
    """The source's files and each artifact as bars; "" if there is no artifact."""
    sizes = target_sizes(data.manifest)
    if not sizes:
        return ""
    source = sum(entry.size_bytes for entry in data.manifest.source.values())
    bars = {"source files": source, **sizes} if source else dict(sizes)
    largest, parts = max(*bars.values(), 1), []
    for index, (name, size) in enumerate(bars.items()):
        y = index * _ROW
        parts += [
            _text("0", y + 14, name, ""),
            _text("100%", y + 14, megabytes(size), "", "end"),
            f'<rect class="bar{" source" if name == "source files" else ""}" x="0" y="{y + 20}" '
            f'width="{100 * size / largest:.2f}%" height="12"/>',
        ]
    said = "; ".join(f"{name} {megabytes(size)}" for name, size in bars.items())
    return _picture("sizes", "Size of the source and of each artifact", f"{said}.", len(bars) * _ROW, parts)


def layer_picture(data: ReportData) -> str:
    """A field of cells, stronger in colour where quantising changed more; "" if nothing is known of layers."""
    rows = layer_errors(data)
    columns = layer_columns(rows)
    largest = max((error for row in rows.values() for error in row.values()), default=0.0)
    if not largest or len(rows) * len(columns) > _MOST_CELLS:
        return ""
    height = 16 if len(rows) <= 48 else 8
    width, parts = (100 - _LEFT - 2) / len(columns), []
    for index, head in enumerate(columns):
        parts.append(_text(f"{_LEFT + 2 + (index + 0.5) * width:.2f}%", 14, head, "small", "middle"))
    for line, (layer, row) in enumerate(rows.items()):
        y = 22 + line * height
        if line % 5 == 0:
            parts.append(_text("0", y + 11, str(layer), "small"))
        for index, head in enumerate(columns):
            if head in row:
                label = f"layer {layer}, {head}: {100 * row[head]:.2f} %"
                parts.append(_cell(_LEFT + 2 + index * width, y, width, height, row[head] / largest, label))
    return _picture(
        "layers", "Relative error of each matrix", f"Rows are layers, columns matrices; at most {100 * largest:.2f} %.",
        22 + len(rows) * height, parts,
    )  # fmt: skip


def _cell(x: float, y: int, width: float, height: int, share: float, label: str) -> str:
    return (
        f'<rect class="cell" x="{x:.2f}%" y="{y}" width="{width - 0.4:.2f}%" height="{height - 1}" '
        f'fill-opacity="{0.06 + 0.94 * share:.2f}"><title>{_safe(label)}</title></rect>'
    )


def stream_picture(number: int, name: str, stream: Mapping[int, float]) -> str:
    """Relative error of what goes into each layer, as bars; ``number`` tells the pictures of a page apart."""
    largest = max(stream.values(), default=0.0)
    if not largest or len(stream) > _MOST_CELLS:
        return ""
    bottom, parts = 150, []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * 130
        parts.append(f'<line class="grid" x1="12%" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(_text("0", y + 4, f"{100 * share * largest:.3g} %", "small"))
    width = 88 / len(stream)
    for index, (layer, error) in enumerate(stream.items()):
        x, tall = 12 + index * width, 130 * error / largest
        parts.append(
            f'<rect class="bar" x="{x + 0.1 * width:.2f}%" y="{bottom - tall:.1f}" width="{0.8 * width:.2f}%" '
            f'height="{tall:.1f}"><title>{_safe(f"layer {layer}: {100 * error:.2f} %")}</title></rect>'
        )
        if index % max(1, math.ceil(len(stream) / 10)) == 0:
            parts.append(_text(f"{x + width / 2:.2f}%", bottom + 18, str(layer), "small", "middle"))
    title = f"Error of what goes into each layer, {name}"
    said = f"Relative to the source model; at most {100 * largest:.3g} %. Across: layers."
    return _picture(f"stream-{number}", title, said, bottom + _AXIS, parts)


def peers_picture(number: int, found: Peers) -> str:
    """Shares of right answers with their intervals, a row for each side; "" if no question had a right answer."""
    rows = [(kind, side) for kind in ("choices", "answers") for side in found.sides if kind in side.shares]
    if not rows:
        return ""
    parts, said = [], []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + part * (_RIGHT - _LEFT)
        parts.append(_line(x, 0, len(rows) * _ROW, "grid"))
        parts.append(_text(f"{x:.2f}%", len(rows) * _ROW + 18, f"{100 * part:.0f} %", "small", "middle"))
    for index, (kind, side) in enumerate(rows):
        share, middle = side.shares[kind], index * _ROW + 28
        low, mean, high = (_LEFT + value * (_RIGHT - _LEFT) for value in (share.low, share.mean, share.high))
        label = f"{100 * share.mean:.1f} % right"
        parts += [
            _text("0", middle - 14, f"{plain(side.name, _LONGEST_NAME)}, {kind}", ""),
            _text("100%", middle - 14, label, "", "end"),
            f'<line class="track" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{middle}" y2="{middle}"/>',
            f'<line class="interval" x1="{low:.2f}%" x2="{high:.2f}%" y1="{middle}" y2="{middle}"/>',
            f'<circle class="dot" cx="{mean:.2f}%" cy="{middle}" r="6"/>',
        ]
        said.append(f"{plain(side.name, 80)}, {kind}: {label}")
    title = f"Right answers with 95 % intervals, {plain(found.task, 80)}"
    return _picture(f"peers-{number}", title, f"{'; '.join(said)}.", len(rows) * _ROW + _AXIS, parts)


def _line(x: float, top: int, bottom: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{bottom}"/>'


def _text(x: str, y: float, text: str, kind: str, anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x}" y="{y:g}" text-anchor="{anchor}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(plain(text, 120))


def _picture(key: str, title: str, description: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg class="picture" role="img" aria-labelledby="{key}-title {key}-desc" width="100%" height="{height}">'
        f'<title id="{key}-title">{_safe(title)}</title><desc id="{key}-desc">{escape(plain(description))}</desc>'
        f"{''.join(parts)}</svg>"
    )
