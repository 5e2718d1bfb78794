"""`pocketlm compare`: what changed between two certificates, and whether it got worse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class _Value:
    """A figure that is compared.

    path        where it stands in a target's certificate
    allowed     share by which it may get worse before that counts
    slack       difference that never counts: the figure's own noise
    more_is_worse  whether a larger figure is the worse one
    """

    path: tuple[str, ...]
    allowed: float
    slack: float = 0.0
    more_is_worse: bool = True


_ANY = float("inf")
_VALUES: Mapping[str, _Value] = {
    "quantization.kl": _Value(("quantization", "kl"), 0.1, 1e-6),
    # conversion, activation and runtime are gated by the certificate itself, whose limits know the model's noise; here
    # they are shown.
    "conversion.kl": _Value(("conversion", "kl"), _ANY),
    "cache.kl": _Value(("cache", "kl"), 0.1, 1e-6),
    "activation.kl": _Value(("activation", "kl"), _ANY),
    "runtime.kl": _Value(("runtime", "kl"), _ANY),
    "total.kl": _Value(("total", "kl"), 0.1, 1e-6),
    "total.top1": _Value(("total", "top1"), 0.02, more_is_worse=False),
    "total.perplexity": _Value(("total", "perplexity_ratio"), 0.02),
    "size": _Value(("size_bytes",), 0.02),
    "memory": _Value(("hardware", "peak_memory_bytes"), 0.1),
}


@dataclass(frozen=True)
class Change:
    """A figure of one target that is not what it was; None where it was not measured."""

    target: str
    name: str
    old: float | None
    new: float | None
    worse: bool


@dataclass(frozen=True)
class Comparison:
    """What changed, figures in the order of the certificates."""

    changes: tuple[Change, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """One line for each change for the worse."""
        return tuple(
            f"{change.target}: {change.name} {show(change.name, change.old)} -> {show(change.name, change.new)}"
            for change in self.changes
            if change.worse
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"worse": bool(self.worse), "changes": [asdict(change) for change in self.changes]}


def allowed_changes(given: Sequence[str]) -> dict[str, float]:
    """``NAME=SHARE`` options over the defaults; raises InputError for what is not one."""
    allowed = {name: value.allowed for name, value in _VALUES.items()}
    for text in given:
        name, _, share = text.partition("=")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if name not in allowed or not number >= 0:
            raise InputError(f"--worse {text}: give NAME=SHARE, as total.kl=0.1; names are {', '.join(allowed)}")
        allowed[name] = number
    return allowed


def compare(old: Path, new: Path, allowed: Mapping[str, float]) -> Comparison:
    """Compare two bundles, or two outputs of export or verify in JSON.

    allowed  name of a figure -> share by which it may get worse, as ``allowed_changes`` gives

    Losing a target, its identity of weights, its verdict, or errors to `--certify identity` is always worse.
    Raises InputError for anything that holds no certificate.
    """
    before, after = read_certificate(old), read_certificate(new)
    changes = [change for name in {**before, **after} for change in _changes(name, before, after, allowed)]
    return Comparison(tuple(changes))


def read_certificate(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The certificates of the targets, by name."""
    file = path / MANIFEST_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        targets = content.get("certificate", content)["targets"]
        if not all(isinstance(target["passed"], bool) for target in targets.values()):
            raise TypeError("passed is not true or false")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: holds no certificate ({type(error).__name__}: {error}); give a bundle, "
            "or what `pocketlm verify --json` printed"
        ) from error
    found: Mapping[str, Mapping[str, Any]] = targets
    return found


def _changes(
    target: str,
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    allowed: Mapping[str, float],
) -> Iterator[Change]:
    if target not in before or target not in after:
        yield Change(target, "target", _truth(target in before), _truth(target in after), target not in after)
        return
    old, new = before[target], after[target]
    for name, key in (("passed", "passed"), ("weights identical", "weights_identical")):
        if bool(old.get(key)) != bool(new.get(key)):
            yield Change(target, name, _truth(old.get(key)), _truth(new.get(key)), not new.get(key))
    if bool(old.get("left_out")) != bool(new.get("left_out")):
        full = _truth(not old.get("left_out")), _truth(not new.get("left_out"))
        yield Change(target, "verified in full", *full, bool(new.get("left_out")))
    for name, value in _VALUES.items():
        first, second = _number(old, value.path), _number(new, value.path)
        if first != second:
            yield Change(target, name, first, second, _is_worse(value, first, second, allowed[name]))


def _truth(value: object) -> float:
    return 1.0 if value else 0.0


def _number(content: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = content
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _is_worse(value: _Value, old: float | None, new: float | None, share: float) -> bool:
    """A figure that was not measured on one side is no worse; one that is not finite any more is."""
    if old is None or new is None or share == _ANY:
        return False
    if not isfinite(new):
        return isfinite(old)
    difference = new - old if value.more_is_worse else old - new
    return difference > abs(old) * share + value.slack


def show(name: str, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    if name in ("target", "passed", "weights identical", "verified in full"):
        return "yes" if value else "NO"
    if name in ("size", "memory"):
        return f"{value / 1e6:.1f} MB"
    if name == "total.top1":
        return f"{100 * value:.1f} %"
    return f"{100 * (value - 1):+.1f} %" if name == "total.perplexity" else f"{value:.3g}"


def _cells(change: Change) -> tuple[str, str, str, str, str]:
    verdict = "worse" if change.worse else ""
    return change.target, change.name, show(change.name, change.old), show(change.name, change.new), verdict


_TITLES = ("target", "what", "old", "new", "")


def markdown_table(comparison: Comparison) -> str:
    """As the body of a comment."""
    if not comparison.changes:
        return "### pocketlm: nothing changed\n"
    count = len(comparison.worse)
    lines = [f"### pocketlm: {f'{count} worse' if count else 'nothing got worse'}", ""]
    lines += [f"| {' | '.join(_TITLES)} |", "|---|---|---:|---:|---|"]
    lines += [f"| {' | '.join(_cells(change))} |" for change in comparison.changes]
    return "\n".join(lines) + "\n"


def terminal_table(comparison: Comparison) -> Table | str:
    """One row for each change; fits 80 columns."""
    from rich import box
    from rich.table import Table

    if not comparison.changes:
        return "nothing changed"
    table = Table(box=box.SIMPLE_HEAD)
    for title in _TITLES:
        table.add_column(title, justify="right" if title in ("old", "new") else "left")
    for change in comparison.changes:
        table.add_row(*_cells(change))
    return table
