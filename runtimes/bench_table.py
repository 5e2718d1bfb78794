"""What `pocketlm bench` measured, as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def bench_table(results: Mapping[str, Any]) -> Table:
    """Speeds: medians, with the distance between the quartiles behind them; a row for each target and length."""
    from rich import box
    from rich.table import Table

    title = f"{results['new_tokens']} new tokens, {results['threads']} threads; medians, and spread between quartiles"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    for label in ("prompt\ntokens", "first token\nafter, ms", "prefill\ntokens/s", "decode\ntokens/s"):
        table.add_column(label, justify="right", no_wrap=True)
    for label in ("decode\nGB/s", "of the\nmemory"):
        table.add_column(label, justify="right", no_wrap=True)
    for name, target in results["targets"].items():
        for length, found in target["lengths"].items():
            table.add_row(name, length, *_cells(found))
    if results["left_out"]:
        lengths = ", ".join(map(str, results["left_out"]))
        table.caption = f"Left out, as the context has no room for them and the new tokens: {lengths}"
        table.caption_justify = "left"
    return table


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    def with_spread(key: str, factor: float = 1.0) -> str:
        return f"{found[key] * factor:.0f} ±{found['spread'][key] * factor:.0f}"

    return (
        with_spread("time_to_first_token_seconds", 1e3),
        with_spread("prefill_tokens_per_second"),
        with_spread("decode_tokens_per_second"),
        f"{found['decode_bytes_per_second'] / 1e9:.1f}",
        f"{100 * found['share_of_bandwidth']:.0f} %",
    )


def load_table(results: Mapping[str, Any]) -> Table:
    """Loading and memory, one column for each target."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    targets: Mapping[str, Mapping[str, Any]] = results["targets"]
    for name in targets:
        table.add_column(name, justify="right")
    rows = (
        ("first load, s", "first_load_seconds", 1, 2),
        ("later load, s", "later_load_seconds", 1, 2),
        ("peak memory of the process, MB", "peak_memory_bytes", 1e-6, 0),
        ("of it since before the load, MB", "artifact_memory_bytes", 1e-6, 0),
        ("cache, kB for each token", "cache_bytes_per_token", 1e-3, 1),
    )
    for label, key, factor, digits in rows:
        table.add_row(label, *(f"{target[key] * factor:.{digits}f}" for target in targets.values()))
    return table


def bandwidth_line(results: Mapping[str, Any]) -> str:
    """What the shares are shares of."""
    memory = results["memory_bandwidth"]
    return (
        f"Memory bandwidth: {memory['best'] / 1e9:.1f} GB/s, the better of reading ({memory['read'] / 1e9:.1f}) and "
        f"copying ({memory['copy'] / 1e9:.1f}): {memory['how']}."
    )
