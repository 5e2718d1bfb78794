"""What a report says of measurements that were given to it, of phones, and of what nobody measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..export.caches import target_cache
from .device_results import DeviceResults
from .devices import Device, read_devices
from .evaluate import Evaluation
from .quality import Interval
from .report_facts import NOT_MEASURED, Table, is_of, kl_text, megabytes, target_sizes
from .report_peers import COSTS, SHARES, Peers, Share
from .report_plan import Plan, Range
from .report_read import ReportData, Timings


def quality_tables(data: ReportData) -> tuple[Table, ...]:
    """One table for each file of `eval`: the source and all that it was compared with, or a bundle and its peer."""
    return (
        *(_peers_table(name, found) for name, found in data.peers.items()),
        *(_quality_table(name, found) for name, found in data.evaluations.items()),
    )


def _peers_table(name: str, found: Peers) -> Table:
    rows = [(label, [_right(side.shares.get(kind)) for side in found.sides]) for kind, label in SHARES.items()]
    bits = [side.bits_per_byte for side in found.sides]
    rows.append(("bits per byte of text", [NOT_MEASURED if value is None else f"{value:.3f}" for value in bits]))
    for key, label, factor, digits in COSTS:
        absent = "not given" if key.startswith("price") else NOT_MEASURED
        costs = [side.costs.get(key) for side in found.sides]
        rows.append((label, [absent if cost is None else f"{cost * factor:.{digits}f}" for cost in costs]))
    kept = tuple((label, *cells) for label, cells in rows if not set(cells) <= {NOT_MEASURED, "not given"})
    said = [f"{line[:1].upper()}{line[1:].rstrip('.')}." for line in found.lines]
    note = " ".join(["Brackets are 95 % intervals. The same questions, scored the same way.", *said])
    heads = ("", *(side.name for side in found.sides))
    return Table(f"{found.task}, {found.items:,} questions, from {name}", heads, kept, note)


def _right(share: Share | None) -> str:
    if share is None:
        return NOT_MEASURED
    mean, low, high = (100 * value for value in (share.mean, share.low, share.high))
    return f"{share.right} of {share.count}: {mean:.1f} % ({low:.1f} to {high:.1f})"


def _quality_table(name: str, found: Evaluation) -> Table:
    rows = []
    if found.source is not None:
        rows.append(("source, fp32", "", _plain(found.source.perplexity, 2), "", "", ""))
    for candidate_name, candidate in found.candidates.items():
        quality = candidate.quality
        rows.append(
            (
                candidate_name,
                megabytes(candidate.size_bytes),
                _plain(quality.perplexity, 2),
                _percent(quality.perplexity_ratio, -1.0),
                _plain(quality.kl, 4),
                _percent(quality.top1, 0.0),
            )
        )
    heads = ("", "size", "perplexity", "against source", "KL", "same top token")
    note = (
        f"{found.tokens:,} tokens in {found.sequences} pieces of a text; weights alone, activations in fp32; "
        "± is half of the 95 % confidence interval."
    )
    return Table(f"Quality, from {name}", heads, tuple(rows), note)


def _half(found: Interval) -> float:
    return (found.high - found.low) / 2


def _plain(found: Interval | None, digits: int) -> str:
    if found is None:
        return NOT_MEASURED
    half = f" ± {_half(found):.{digits}f}" if math.isfinite(_half(found)) else ""
    return f"{found.mean:.{digits}f}{half}"


def _percent(found: Interval | None, shift: float) -> str:
    if found is None:
        return NOT_MEASURED
    half = f" ± {100 * _half(found):.1f}" if math.isfinite(_half(found)) else ""
    return f"{100 * (found.mean + shift):{'+' if shift else ''}.1f}{half} %"


_SPEED: tuple[tuple[str, str, float, int], ...] = (
    ("prefill, tokens/s", "prefill_tokens_per_second", 1, 0),
    ("decode, tokens/s", "decode_tokens_per_second", 1, 0),
    ("first token after, ms", "time_to_first_token_seconds", 1e3, 0),
    ("first load, s", "first_load_seconds", 1, 2),
    ("later load, s", "later_load_seconds", 1, 2),
    ("peak memory of the process, MB", "peak_memory_bytes", 1e-6, 0),
)


def speed_tables(data: ReportData) -> tuple[Table, ...]:
    """One table for each file of `bench`, of a computer or a phone; medians, as they were measured."""
    tables = [
        _speed_table(f"On a computer, from {name}", found.targets, _computer(found))
        for name, found in data.timings.items()
    ]
    for name, device in data.devices.items():
        if device.bench is not None:
            settings = "{prompt_tokens} prompt tokens, {new_tokens} new ones, {threads} threads.".format(**device.bench)
            caption = f"On {device.model}, {device.system}, from {name}"
            tables.append(_speed_table(caption, device.bench["targets"], settings + _whose(data, device)))
    return tuple(tables)


def _computer(found: Timings) -> str:
    runners = "; ".join(f"{name}: by {target['evaluated_by']}" for name, target in found.targets.items())
    return f"{found.settings}. {runners}. The file does not say on which computer."


def _speed_table(caption: str, targets: Mapping[str, Mapping[str, Any]], note: str) -> Table:
    rows = tuple(
        (label, *(f"{float(target[key]) * factor:,.{digits}f}" for target in targets.values()))
        for label, key, factor, digits in _SPEED
    )
    return Table(caption, ("", *targets), (*rows, *_by_length(targets)), note)


def _by_length(targets: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Decoding behind prompts of several lengths, where that was measured; the first stands above already."""
    measured = [target.get("lengths", {}) for target in targets.values()]
    lengths = list(dict.fromkeys(length for each in measured for length in each))
    return [
        (
            f"decode behind {length} tokens, tokens/s",
            *(
                f"{each[length]['decode_tokens_per_second']:,.0f}" if length in each else NOT_MEASURED
                for each in measured
            ),
        )
        for length in lengths[1:]
    ]


def _whose(data: ReportData, device: DeviceResults) -> str:
    if is_of(data, device):
        return " Of this very bundle, by the hash of its manifest."
    return " OF ANOTHER BUNDLE: the hash of its manifest is not this one's."


def replay_tables(data: ReportData) -> tuple[Table, ...]:
    """What phones found when they replayed golden.json."""
    tables = []
    for name, device in data.devices.items():
        rows = tuple(
            (
                target,
                kl_text(float(found["kl"])) if "kl" in found else "not a number",
                kl_text(float(found["tolerance_kl"])),
                "passed" if found["passed"] else "FAILED",
            )
            for target, found in device.verify.items()
        )
        if rows or device.error:
            note = (f"The app reported: {device.error}." if device.error else "") + _whose(data, device)
            caption = f"Replayed on {device.model}, {device.system}, from {name}"
            tables.append(Table(caption, ("target", "KL", "tolerance", "verdict"), rows, note.strip()))
    return tuple(tables)


def plan_tables(data: ReportData) -> tuple[Table, ...]:
    """One table for each file of `plan`: estimates, and whether they are for this recipe and context."""
    return tuple(_plan_table(data, name, found) for name, found in data.plans.items())


def _plan_table(data: ReportData, name: str, found: Plan) -> Table:
    rows = tuple(
        (
            device.name,
            device.target,
            f"{device.needed_bytes / 1e6:,.0f} of {device.limit_bytes / 1e6:,.0f}",
            _between(device.first_token_seconds),
            _between(device.tokens_per_second),
            _between(device.joules_per_token),
            device.verdict,
        )
        for device in found.devices
        if device.target in data.manifest.targets
    )
    recipe = None if data.recipe is None else data.recipe.name
    same = (found.recipe, found.context) == (recipe, data.manifest.context)
    warning = "" if same else " THAT IS NOT THIS BUNDLE'S RECIPE AND CONTEXT."
    note = (
        f"For {found.model} by {found.recipe} with a context of {found.context:,} tokens, from {name}.{warning} "
        "Estimated from the model's configuration and published figures of the devices; nothing was run there."
    )
    heads = ("device", "target", "memory, MB", "first token, s", "tokens/s", "J/token", "verdict")
    return Table("Plan for named devices (estimate)", heads, rows, note)


def _between(found: Range) -> str:
    return f"{_short(found.low)}–{_short(found.high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def cache_bytes(data: ReportData, target: str) -> int:
    """Of the keys and values of a whole context, as this target stores them."""
    form = data.manifest.cache(target) or target_cache(target, "float")
    attentions = [layer.attention for layer in data.config.layers]
    return data.manifest.context * sum(form.token_bytes(each.kv_heads, each.head_dim) for each in attentions)


def phone_table(data: ReportData) -> Table:
    """Artifact and full cache as a share of what one app may use, for each phone that is known: an estimate."""
    sizes = target_sizes(data.manifest)
    needed = {target: size + cache_bytes(data, target) for target, size in sizes.items()}
    rows = tuple(
        (
            device.name,
            f"{device.app_bytes / 1e6:,.0f}\N{NO-BREAK SPACE}MB",
            *(_share(device, name, size) for name, size in needed.items()),
        )
        for device in read_devices().values()
    )
    held = "; ".join(
        f"{name}: {megabytes(sizes[name])} of files, {megabytes(cache_bytes(data, name))} of cache for "
        f"{data.manifest.context:,} tokens"
        for name in sizes
    )
    note = (
        f"An estimate, not a measurement, of {held}. What runtime, activations and the app itself take comes on top. "
        "What an app may use is from public sources or a rule, and was measured by none of us."
    )
    return Table(
        "Share of what one app may use of the memory (estimate)", ("device", "app may use", *needed), rows, note
    )


def _share(device: Device, target: str, needed: int) -> str:
    if target == "coreml" and not device.name.startswith("Apple "):
        return "–"
    share = 100 * needed / device.app_bytes
    return f"{'' if share <= 100 else 'too large: '}{share:,.0f}\N{NO-BREAK SPACE}%"


def unverified(data: ReportData) -> tuple[str, ...]:
    """What nobody measured, or not on the real thing; a line each."""
    lines = ["All of this is what pocketlm.json and the given files record; pocketlm verify measures it again."]
    for name, target in data.certificate.targets.items():
        lines.append(
            f"{name}: was run by {target.evaluated_by}, over {target.positions} positions; nothing else ran it."
        )
        lines += [f"{name}: {note}" for note in target.notes]
    lines += [
        f"{name}: was not verified at all." for name in data.manifest.targets if name not in data.certificate.targets
    ]
    lines += _absent(data)
    if data.recipe is not None and data.recipe.method != "rtn":
        lines.append(
            "A bundle does not record which calibration text was read; without --calibration it is pocketlm's own."
        )
    return tuple(lines)


def _absent(data: ReportData) -> list[str]:
    """What was not given to the report, and what the files that were given do not prove."""
    devices = data.devices.values()
    timed = bool(data.timings) or any(device.bench for device in devices)
    lines = []
    if not any(device.verify and is_of(data, device) for device in devices):
        lines.append("No phone's replay of this bundle was given: parity on a phone is not shown.")
    if not data.evaluations and not data.peers:
        lines.append("No evaluation was given: quality is known from the certificate alone.")
    else:
        lines.append(
            "An evaluation's file does not name its bundle: that it belongs to this one is the word of who gave it."
        )
    if not timed:
        lines.append("No timings were given: nothing is said about speed.")
    elif data.timings:
        lines.append("A computer's timings name neither the bundle nor the computer.")
    return lines
