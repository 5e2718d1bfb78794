"""What `eval --tasks` found, for people and for scripts: a table, Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plain_text import plain
from .quality import Interval, interval
from .svg import Labels, interval_chart
from .task_run import Comparison, Side
from .task_scoring import Outcome, bits_per_byte
from .task_statistics import Paired, paired, wilson
from .tasks import Item, MultipleChoice, RunningText, ShortAnswer, digest
from .write_files import write_files

if TYPE_CHECKING:
    from rich.table import Table

NOT_MEASURED = "not measured"
Judge = Callable[[Outcome], bool | None]
_KINDS: Mapping[str, type] = {"choices": MultipleChoice, "answers": ShortAnswer, "text": RunningText}


@dataclass(frozen=True)
class Share:
    """Right answers of one side; ``not_understood`` counts those that named no choice."""

    count: int
    right: int
    accuracy: Interval
    not_understood: int = 0


@dataclass(frozen=True)
class Cost:
    """Means over all that a side answered; None where it was not measured, or no price was given.

    tokens_per_second  read and written together
    joules             of the machine's processors, idle share included
    """

    answers: int
    seconds_per_answer: float
    tokens_per_second: float | None
    prompt_tokens: int | None
    new_tokens: int | None
    peak_memory_bytes: int | None
    joules_per_answer: float | None
    price_of_1000_answers: float | None


@dataclass(frozen=True)
class Summary:
    """One side. ``choices_by_length`` judges by log-likelihood a character; ``bits_per_byte`` is of running text."""

    name: str
    choices: Share | None
    choices_by_length: Share | None
    answers: Share | None
    bits_per_byte: Interval | None
    cost: Cost | None
    refused: int


def _right(outcome: Outcome) -> bool | None:
    return outcome.right


def _by_length(outcome: Outcome) -> bool | None:
    return outcome.by_length


def summarise(found: Comparison) -> list[Summary]:
    """One summary for each side."""
    return [_summary(found.task.items, side) for side in found.sides]


def _summary(items: Sequence[Item], side: Side) -> Summary:
    choices, answers, texts = (list(_outcomes(items, side, kind)) for kind in _KINDS.values())
    return Summary(
        side.name,
        _share(choices, _right),
        _share(choices, _by_length),
        _share(answers, _right),
        interval([bits_per_byte(outcome) for outcome in texts]) if texts else None,
        _cost(side) if side.outcomes else None,
        side.refused,
    )


def _outcomes(items: Sequence[Item], side: Side, kind: type) -> Iterator[Outcome]:
    return (outcome for place, outcome in sorted(side.outcomes.items()) if isinstance(items[place], kind))


def _share(outcomes: Sequence[Outcome], judge: Judge) -> Share | None:
    judged = [verdict for outcome in outcomes if (verdict := judge(outcome)) is not None]
    if not judged:
        return None
    unclear = sum(not outcome.understood for outcome in outcomes)
    return Share(len(judged), sum(judged), wilson(sum(judged), len(judged)), unclear)


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None if one is missing."""
    present = [value for value in values if value is not None]
    return sum(present) if len(present) == len(values) else None


def _cost(side: Side) -> Cost:
    outcomes, count = list(side.outcomes.values()), len(side.outcomes)
    seconds = sum(outcome.spent.seconds for outcome in outcomes)
    read = _total([outcome.spent.prompt_tokens for outcome in outcomes])
    new = _total([outcome.spent.new_tokens for outcome in outcomes])
    peaks = [entry.peak_memory_bytes for entry in side.measured.values() if entry.peak_memory_bytes is not None]
    joules = _total([side.measured[place].joules for place in side.outcomes])
    return Cost(
        count,
        seconds / count,
        None if read is None or new is None or not seconds else (read + new) / seconds,
        None if read is None else int(read),
        None if new is None else int(new),
        max(peaks, default=None),
        None if joules is None else joules / count,
        _price(side, read, new, count),
    )


def _price(side: Side, read: float | None, new: float | None, count: int) -> float | None:
    """Of 1,000 answers; None without prices, or if the endpoint does not say how many tokens it took."""
    if (side.price_in is None and side.price_out is None) or read is None or new is None:
        return None
    return (read * (side.price_in or 0) + new * (side.price_out or 0)) / 1e6 / count * 1000


def compare(found: Comparison) -> dict[str, Paired | Interval]:
    """The first side against the second on what both answered, by kind; empty with one side.

    Of running text it is the mean difference of bits per byte, second less first.
    """
    if len(found.sides) < 2:
        return {}
    first, second = found.sides[:2]
    result: dict[str, Paired | Interval] = {}
    for name, kind in _KINDS.items():
        both = [
            (first.outcomes[place], second.outcomes[place])
            for place, item in enumerate(found.task.items)
            if isinstance(item, kind) and place in first.outcomes and place in second.outcomes
        ]
        if both and name == "text":
            result[name] = interval([bits_per_byte(right) - bits_per_byte(left) for left, right in both])
        elif both:
            result[name] = paired((bool(left.right), bool(right.right)) for left, right in both)
    return result


def to_json(found: Comparison) -> dict[str, Any]:
    """Everything, with what each side answered to each item. What JSON has no number for is null."""
    content: dict[str, Any] = _finite(_json(found))
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _json(found: Comparison) -> dict[str, Any]:
    return {
        "task": {"name": found.task.name, "about": dict(found.task.about), "items": len(found.task.items)},
        "method": asdict(found.method),
        "sides": [asdict(summary) for summary in summarise(found)],
        "paired": {name: asdict(result) for name, result in compare(found).items()},
        "notes": list(found.notes),
        "answers": [
            {"item": digest(item), "outcomes": [_answer(side.outcomes.get(place)) for side in found.sides]}
            for place, item in enumerate(found.task.items)
        ],
    }


def _answer(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else asdict(outcome)


def rows(summaries: Sequence[Summary], priced: bool) -> list[tuple[str, list[str]]]:
    """The lines of the table, with a cell for each side; lines that would say nothing are left out."""
    found = [
        ("choices right", [_share_text(side.choices) for side in summaries]),
        ("  likelihood by length", [_share_text(side.choices_by_length) for side in summaries]),
        ("  named no choice", [_unclear(side.choices) for side in summaries]),
        ("short answers right", [_share_text(side.answers) for side in summaries]),
        ("bits per byte of text", [_bits_text(side.bits_per_byte) for side in summaries]),
        ("refused", [str(side.refused or "") for side in summaries]),
    ]
    kept = [(label, cells) for label, cells in found if any(cells)]
    costs = [side.cost for side in summaries]
    measured: list[tuple[str, str, float, int]] = [
        ("seconds an answer", "seconds_per_answer", 1, 3),
        ("tokens/s", "tokens_per_second", 1, 0),
        ("peak memory, MB", "peak_memory_bytes", 1e-6, 0),
        ("joules an answer", "joules_per_answer", 1, 2),
    ]
    kept += [
        (label, [_cost_text(cost, key, factor, digits) for cost in costs]) for label, key, factor, digits in measured
    ]
    prices = [_cost_text(cost, "price_of_1000_answers", 1, 4) for cost in costs[1:]]
    return [*kept, ("price of 1,000", ["", *prices])] if priced else kept


def _share_text(share: Share | None) -> str:
    if share is None:
        return ""
    low, high = 100 * share.accuracy.low, 100 * share.accuracy.high
    return f"{share.right}/{share.count} = {100 * share.accuracy.mean:.1f} % ({low:.0f} to {high:.0f})"


def _unclear(share: Share | None) -> str:
    return str(share.not_understood) if share is not None and share.not_understood else ""


def _bits_text(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.3f}" + (f" ({found.low:.3f} to {found.high:.3f})" if isfinite(found.high) else "")


def _cost_text(cost: Cost | None, key: str, factor: float, digits: int) -> str:
    value = None if cost is None else getattr(cost, key)
    return NOT_MEASURED if value is None else f"{value * factor:.{digits}f}"


def table(found: Comparison) -> Table:
    """For a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    summaries = summarise(found)
    result = Table(title=escape(title(found)), box=box.SIMPLE_HEAD, title_justify="left")
    result.add_column("")
    for summary in summaries:
        result.add_column(escape(plain(summary.name)), justify="right", overflow="fold")
    for label, cells in rows(summaries, _priced(found)):
        result.add_row(label, *cells)
    return result


def _priced(found: Comparison) -> bool:
    return any(side.price_in is not None or side.price_out is not None for side in found.sides)


def title(found: Comparison) -> str:
    """What was asked, and how."""
    kinds = {type(item) for item in found.task.items}
    how = []
    if MultipleChoice in kinds:
        how.append("choices by log-likelihood" if found.method.likelihood else "choices read from generated answers")
    if ShortAnswer in kinds or (MultipleChoice in kinds and not found.method.likelihood):
        how.append(f"{'chat' if found.method.chat else 'plain text'}, at most {found.method.max_new_tokens} new tokens")
    return ", ".join([f"{plain(found.task.name)}: {len(found.task.items)} items", *how])


def lines(found: Comparison) -> list[str]:
    """What stands below the table: the paired comparison, notes, where the task is from."""
    said = [_paired_text(name, result, found.sides) for name, result in compare(found).items()]
    by_chance = [len(item.right) / len(item.choices) for item in found.task.items if isinstance(item, MultipleChoice)]
    if by_chance:
        said.insert(0, f"Chance alone would get {100 * sum(by_chance) / len(by_chance):.1f} % of the choices right.")
    about = [f"{key}: {value}" for key, value in found.task.about.items() if key != "canary"]
    if any(side.cost is not None and side.cost.joules_per_answer is None for side in summarise(found)[:1]):
        said.append("Joules need Linux powercap counters (RAPL) that this user may read; there were none.")
    said += [*found.notes, "Intervals are 95 %; tokens/s count what is read and what is written.", *about]
    return [plain(line) for line in said]  # a task and an endpoint were written by others


def _paired_text(name: str, result: Paired | Interval, sides: Sequence[Side]) -> str:
    first, second = sides[0].name, sides[1].name
    if isinstance(result, Interval):
        margin = f" ± {(result.high - result.low) / 2:.3f}" if isfinite(result.high) else ""
        return f"Bits per byte, {second} less {first}: {result.mean:+.3f}{margin}."
    return (
        f"{name.capitalize()}: both right {result.both}, only {first} {result.only_first}, "
        f"only {second} {result.only_second}, neither {result.neither}; exact McNemar test p = {result.p_value:.3g}."
    )


def markdown(found: Comparison) -> str:
    """The table and what stands below it, for a README or a pull request."""
    summaries = summarise(found)
    head = ["", *(summary.name for summary in summaries)]
    body = [[label.strip(), *cells] for label, cells in rows(summaries, _priced(found))]
    grid = [head, ["---"] * len(head), *body]
    written = ["| " + " | ".join(map(_cell, line)) + " |" for line in grid]
    below = [f"- {_cell(line)}" for line in lines(found)]
    return "\n".join([f"**{_cell(title(found))}**", "", *written, "", *below]) + "\n"


def _cell(text: str) -> str:
    """A server names its model: what it writes must not become a part of the page."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("\n", " ")


def picture(found: Comparison) -> str:
    """Accuracies with their intervals, or bits per byte where there is only running text; SVG."""
    summaries = summarise(found)
    bars = {
        f"{side.name}, {label}": (share.accuracy.mean * 100, share.accuracy.low * 100, share.accuracy.high * 100)
        for label in ("choices", "answers")
        for side in summaries
        if (share := getattr(side, label)) is not None
    }
    if bars:
        return interval_chart(Labels(title(found), "right, % (95 % interval)", ""), bars, 100)
    bits = {side.name: side.bits_per_byte for side in summaries if side.bits_per_byte is not None}
    return interval_chart(
        Labels(title(found), "bits per byte (95 % interval); less is better", ""),
        {name: (part.mean, max(0.0, part.low), min(part.high, 2 * part.mean)) for name, part in bits.items()},
    )


def write_report(found: Comparison, folder: Path, content: str) -> list[Path]:
    """Write report.md, report.json (``content``) and report.svg into a folder; raises InputError if it cannot be."""
    files = {"report.md": markdown(found), "report.json": content + "\n", "report.svg": picture(found)}
    return write_files(folder, files)
