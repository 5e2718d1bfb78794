"""A plan as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .plan_device import NEW_TOKENS, PROMPT_TOKENS, DevicePlan, Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from .plan import Plan


def plan_tables(plan: Plan) -> Iterator[str | Table]:
    """What an export gives, and what it does on devices: headings and tables."""
    cache = "" if plan.cache == "float" else f" in {plan.cache}"
    parameters = f"{plan.parameters / 1e6:.0f} M parameters"
    yield f"{plan.model}, {parameters}: {plan.recipe}, context of {plan.context} tokens{cache}"
    yield _artifacts(plan)
    if plan.devices:
        yield f"Estimates, with {PROMPT_TOKENS} prompt tokens and {NEW_TOKENS} new ones"
        yield _devices(plan)


def _artifacts(plan: Plan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("MB")
    for name in plan.targets:
        table.add_column(name, justify="right")
    targets = list(plan.targets.values())
    table.add_row("artifact", *(f"{target.artifact_bytes / 1e6:.1f}" for target in targets), end_section=True)
    for label in ("weights", "cache", "activations", "runtime"):
        table.add_row(label, *(f"{getattr(target.memory, label) / 1e6:.0f}" for target in targets))
    table.add_row("memory on the phone, about", *(f"{target.memory.total / 1e6:.0f}" for target in targets))
    return table


def _devices(plan: Plan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for label in ("device", "target"):
        table.add_column(label, no_wrap=True)
    for label in ("GB, of\nlimit", "first\ntoken, s", "tokens/s", "J/token"):
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for row in plan.devices:
        table.add_row(*_cells(row))
    return table


def _cells(row: DevicePlan) -> tuple[str, ...]:
    memory = "/".join(
        f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.0f}" for size in (row.needed_bytes, row.limit_bytes)
    )
    ranges = (row.first_token_seconds, row.tokens_per_second, row.joules_per_token)
    fits = {"fits": "yes", "tight": "tight"}.get(row.verdict, "NO")
    return (row.device, row.target, memory, *map(_range, ranges), fits)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.0f}"


def _range(estimate: Estimate) -> str:
    return f"{_short(estimate.low)}-{_short(estimate.high)}"


def _short(value: float) -> str:
    """Two digits that count, but never more than two behind the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


_CERTIFIED = {"full": "verified", "identity": "its weights read back and compared but not run"}


def remarks(plan: Plan) -> Iterator[str]:
    """Reasons, remedies, and how far to trust all this."""
    for row in plan.devices:
        if row.verdict != "fits":
            yield f"{row.device}, {row.target}: {row.verdict}: {row.reason}."
            if row.remedies:
                yield f"  It would with {'; or '.join(row.remedies)}."
            else:
                yield "  No recipe and no context of 512 tokens or more changes that: take a smaller model."
    about = "" if plan.download_exact else "about "
    yield f"Download: {about}{plan.download_bytes / 1e6:.0f} MB."
    yield (
        f"The export itself, {_CERTIFIED[plan.certify]}: about {plan.export.memory_bytes / 1e9:.1f} GB of memory and "
        f"{_duration(plan.export.seconds)} on two cores, within a factor of two."
    )
    yield (
        "Speeds: a roofline of published bandwidth and arithmetic, not measured (docs/plan.md).\n"
        "A hot phone is slower, by half or more."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
