"""Small pictures of measurements, as SVG: lines over an axis, points with names, and means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 55
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito's palette
_FONT = 'font-family="sans-serif" font-size="12"'

Points = Sequence[tuple[float, float]]
_Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Labels:
    """What stands above a picture and along its axes."""

    title: str
    x: str
    y: str


@dataclass(frozen=True)
class _Frame:
    """The range of both axes."""

    low: tuple[float, float]
    high: tuple[float, float]

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point is drawn, in pixels."""
        x, y = ((v - a) / (b - a) for v, a, b in zip(point, self.low, self.high, strict=True))
        return _LEFT + x * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)


def line_chart(labels: Labels, series: Mapping[str, Points]) -> str:
    """An SVG document with one line for each series, and a legend; y starts at 0."""
    frame = _frame([point for points in series.values() for point in points])
    parts = _axes(labels, frame)
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, points))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        x, y = _LEFT + 12 + 150 * (index % 4), _TOP - 8 + 15 * (index // 4)
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}" {_FONT}>{escape(name)}</text>')
    return _document(parts)


def scatter(labels: Labels, points: Mapping[str, tuple[float, float]]) -> str:
    """An SVG document with one point for each name; y starts at 0."""
    frame = _frame(list(points.values()))
    parts = _axes(labels, frame)
    places = [frame.place(point) for point in points.values()]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for index, (name, (x, y)) in enumerate(zip(points, places, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        box = _free_place(x, y, 6.6 * len(name), taken)
        taken.append(box)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        anchor, at = ("start", box[0]) if box[0] > x else ("end", box[2])
        place = f'x="{at:.1f}" y="{box[3] - 3:.1f}" text-anchor="{anchor}"'
        parts.append(f'<text {place} fill="{colour}" {_FONT}>{escape(name)}</text>')
    return _document(parts)


def _free_place(x: float, y: float, width: float, taken: Sequence[_Box]) -> _Box:
    """Where the name of a point goes: beside it, where nothing else stands; to its right and above if all is taken."""
    beside = [(x + 7, y + rise) for rise in (-15, 1, -31, 17)] + [
        (x - 7 - width, y + rise) for rise in (-15, 1, -31, 17)
    ]
    boxes = [(left, top, left + width, top + 13) for left, top in beside]
    inside = [box for box in boxes if box[0] >= _LEFT and box[2] <= _WIDTH - 5 and box[1] >= _TOP]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    return next(iter([*free, *inside, *boxes]))


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def interval_chart(labels: Labels, rows: Mapping[str, tuple[float, float, float]], highest: float | None = None) -> str:
    """An SVG document with one (mean, low, high) below the other, each under its name.

    x goes from 0 to ``highest``, or a little beyond the highest value.
    """
    end = highest or 1.05 * max((high for _, _, high in rows.values()), default=0.0) or 1.0
    frame = _Frame((0.0, -len(rows) + 0.25), (end, 0.75))
    parts = _axes(labels, frame, numbers_beside=False)
    for index, (name, (mean, low, high)) in enumerate(rows.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        (left, y), (middle, _), (right, _) = (frame.place((x, -index)) for x in (low, mean, high))
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(
            f'<text x="{_LEFT + 8}" y="{y - 12:.1f}" fill="{colour}" {_FONT}>{escape(name)}: {mean:.3g}</text>'
        )
    return _document(parts)


def _frame(points: Points) -> _Frame:
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    margin = 0.05 * (max(xs) - min(xs)) or 1.0
    return _Frame((min(xs) - margin, 0.0), (max(xs) + margin, 1.08 * max(ys) or 1.0))


def _axes(labels: Labels, frame: _Frame, numbers_beside: bool = True) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts = [
        f'<text x="{_LEFT}" y="20" font-family="sans-serif" font-size="15">{escape(labels.title)}</text>',
        f'<text x="{middle_x}" y="{_HEIGHT - 12}" text-anchor="middle" {_FONT}>{escape(labels.x)}</text>',
        f'<text transform="translate(16 {middle_y}) rotate(-90)" text-anchor="middle" {_FONT}>',
        f"{escape(labels.y)}</text>",
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>',
    ]
    for index in range(6):
        share = index / 5
        x, y = (low + share * (high - low) for low, high in zip(frame.low, frame.high, strict=True))
        at_x, at_y = frame.place((x, y))
        if numbers_beside:
            parts.append(f'<path d="M{_LEFT} {at_y:.1f}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end" {_FONT}>{y:.3g}</text>')
        else:
            parts.append(f'<path d="M{at_x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at_x:.1f}" y="{bottom + 17}" text-anchor="middle" {_FONT}>{x:.3g}</text>')
    return parts


def _document(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>"]) + "\n"
