"""Hold `pocketlm plan` against published speeds: python benchmarks/plan_validation.py

Nothing is measured here: plan_validation.toml lists what others published, with sources, and this recomputes what the
plan says for each row. Constants were fitted to the rows marked `fit`; the error on the others is the one that counts.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pocketlm.export.config import parse_config
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes.chips import Chip, parse_chip
from pocketlm.runtimes.devices import read_devices
from pocketlm.runtimes.plan_speed import (
    FAST,
    SLOW,
    TYPICAL,
    Efficiency,
    Work,
    decode_seconds,
    measure_work,
    on_gpu,
    prefill_seconds,
)
from pocketlm.runtimes.plan_storage import describe_storage

ROWS = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Comparison:
    """One published figure and the plan's."""

    what: str
    fit: bool
    source: str
    device: str
    model: str
    format: str
    published: float
    estimated: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.published <= self.high

    @property
    def ratio(self) -> float:
        return self.estimated / self.published

    @property
    def error(self) -> float:
        return abs(self.ratio - 1)


def compare() -> list[Comparison]:
    """All rows: decoding, then prefill."""
    content = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    found = []
    for what in ("decode", "prefill"):
        for row in content["rows"]:
            if what in row:
                low, estimated, high = (_estimate(what, row, content, at) for at in (SLOW, TYPICAL, FAST))
                names = (row["source"], row["device"], row["model"].replace("_", "."), row["format"])
                found.append(Comparison(what, row.get("fit", False), *names, row[what], estimated, low, high))
    return found


def _estimate(what: str, row: Mapping[str, Any], content: Mapping[str, Any], share: Efficiency) -> float:
    """Tokens per second."""
    work, chip = _work(row, content["models"]), _chip(row["device"], content["hardware"])
    prompt, at = row.get("prompt", 0), on_gpu(share) if row.get("gpu") else share
    if what == "prefill":
        return prompt / prefill_seconds(work, chip, prompt, at)
    return 1 / decode_seconds(work, chip, row.get("behind", prompt) + row["new"] // 2, at)


def _work(row: Mapping[str, Any], models: Mapping[str, Any]) -> Work:
    recipe = row.get("recipe", "fp32" if row.get("float") else "int4-rtn")
    config = parse_config(models[row["model"]], 4096)
    target = "coreml" if row.get("gpu") else "executorch"
    work = measure_work(describe_storage(config, load_recipe(recipe), 4096, frozenset()), target)
    return replace(work, weight_bytes=int(row["read_gb"] * 1e9)) if "read_gb" in row else work


def _chip(device: str, hardware: Mapping[str, Any]) -> Chip:
    return parse_chip(device, hardware[device]) if device in hardware else read_devices()[device].chip


def summary(rows: Iterable[Comparison]) -> dict[str, tuple[int, float, float, float, int]]:
    """Group -> (rows, median error, smallest ratio, largest ratio, rows inside the plan's range)."""
    groups: dict[str, list[Comparison]] = {}
    for row in rows:
        for group in ("all", row.what, f"{row.what}, {'fitted' if row.fit else 'held out'}"):
            groups.setdefault(group, []).append(row)
    return {
        group: (
            len(members),
            median(row.error for row in members),
            min(row.ratio for row in members),
            max(row.ratio for row in members),
            sum(row.inside for row in members),
        )
        for group, members in groups.items()
    }


def main() -> None:
    rows = compare()
    print("| | device | model | format | source | published | plan | range | ratio |\n" + "|---" * 9 + "|")
    for row in rows:
        kind = row.what + (", fitted" if row.fit else "")
        figures = (f"{row.published:g}", f"{row.estimated:.3g}", f"{row.low:.3g}-{row.high:.3g}", f"{row.ratio:.2f}")
        print(f"| {' | '.join((kind, row.device, row.model, row.format, row.source, *figures))} |")
    print("\n| figures | rows | median error | ratios | inside the range |\n|---|---|---|---|---|")
    for group, (count, error, low, high, inside) in summary(rows).items():
        print(f"| {group} | {count} | {100 * error:.0f} % | {low:.2f} to {high:.2f} | {inside} |")


if __name__ == "__main__":
    sys.exit(main())
