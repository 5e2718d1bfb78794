"""What an app measured on a phone: the JSON that android_demo writes, and how it is shown beside a computer's figures.

{"schema_version": 1, "kind": "device", "device": {"platform", "model", "system", "abi", "cores", "memory_bytes"},
 "bundle": {"name", "manifest_sha256"}, "error": text or absent,
 "verify": {target: {"kl": nats, absent if it is no number, "tolerance_kl", "passed", "positions", "seconds", and from
            Android "arithmetic", the entry of golden.json that its core computes as, if not the target itself}},
 "bench": {"prompt_tokens", "new_tokens", "threads", "targets": {target: as of `pocketlm bench`, and "runtime",
           "before", "after" and "sustained": readings of battery current, temperature, thermal status}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1

_RATES = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds")
_FIGURES = (*_RATES, "first_load_seconds", "later_load_seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class DeviceResults:
    """A results file; ``verify`` by target, ``bench`` as `pocketlm bench --json` has it, or None."""

    model: str
    system: str
    bundle: str
    manifest_sha256: str
    error: str | None
    verify: Mapping[str, Mapping[str, Any]]
    bench: Mapping[str, Any] | None
    content: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether everything that was verified passed."""
        return all(replay["passed"] is True for replay in self.verify.values())


def read_results_file(path: Path) -> DeviceResults:
    """Read a results file; raises InputError if it cannot be used."""
    try:
        return read_results(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error


def read_results(text: str, source: str) -> DeviceResults:
    """Read the content of a results file; ``source`` names it in the message of an InputError."""
    try:
        content = json.loads(text)
        if content["kind"] != "device" or content["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{source}: not results that this pocketlm reads; use an app of the same version")
        results = DeviceResults(
            str(content["device"]["model"]),
            str(content["device"]["system"]),
            str(content["bundle"]["name"]),
            str(content["bundle"]["manifest_sha256"]),
            content.get("error"),
            dict(content.get("verify", {})),
            content.get("bench"),
            content,
        )
        _check(results)
        return results
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: damaged ({type(error).__name__}: {error}); measure again") from error


def _check(results: DeviceResults) -> None:
    for replay in results.verify.values():
        float(replay["tolerance_kl"])
        if not isinstance(replay["passed"], bool):
            raise TypeError("passed is neither true nor false")
        if replay["passed"] and not float(replay["kl"]) <= float(replay["tolerance_kl"]):
            raise ValueError("it claims to have passed beyond its tolerance")
    if results.bench is not None:
        for key in ("prompt_tokens", "new_tokens", "threads"):
            int(results.bench[key])
        for target in results.bench["targets"].values():
            for key in _FIGURES:
                float(target[key])


def verify_table(results: DeviceResults, certificate: Mapping[str, Any]) -> Table:
    """What the phone found beside what the export found on a computer; ``certificate`` is the manifest's."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{results.bundle} on {results.model}, {results.system}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for column in ("", "KL here", "tolerance", "KL at export", "verdict"):
        table.add_column(column, justify="left" if column in ("", "verdict") else "right")
    for target, replay in results.verify.items():
        known = certificate.get("targets", {}).get(target, {}).get("runtime", {}).get("kl")
        table.add_row(
            target,
            f"{replay['kl']:.3g}" if "kl" in replay else "not a number",
            f"{replay['tolerance_kl']:.3g}",
            "" if known is None else f"{known:.3g}",
            "passed" if replay["passed"] else "failed",
        )
    return table


def compare_table(devices: Sequence[DeviceResults], host: Mapping[str, Any] | None) -> Table:
    """Speed and memory of phones, and of this computer if ``host`` has its figures; one column for each target."""
    from rich import box
    from rich.table import Table

    columns = [
        (f"{device.model}\n{name}, {_settings(device.bench)}", target)
        for device in devices
        if device.bench is not None
        for name, target in device.bench["targets"].items()
    ]
    if host is not None:
        columns += [(f"this computer\n{name}, {_settings(host)}", target) for name, target in host["targets"].items()]
    if not columns:
        raise InputError("there are no timings in it; measure with: pocketlm device bench")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for label, show in _ROWS:
        cells = [show(target) for _, target in columns]
        if any(cells):
            table.add_row(label, *cells)
    return table


def _settings(bench: Mapping[str, Any]) -> str:
    return f"{bench['prompt_tokens']}+{bench['new_tokens']} tokens, {bench['threads']} threads"


def _figure(key: str, factor: float, digits: int) -> Any:
    return lambda target: f"{target[key] * factor:.{digits}f}"


def _reading(key: str) -> Any:
    def show(target: Mapping[str, Any]) -> str:
        value = target.get("after", {}).get(key)
        return "" if value is None else f"{value:.0f}" if isinstance(value, int | float) else str(value)

    return show


def _last_sustained(target: Mapping[str, Any]) -> str:
    windows = target.get("sustained") or []
    return f"{windows[-1]['decode_tokens_per_second']:.0f} at {windows[-1]['at_seconds']:.0f} s" if windows else ""


_ROWS = (
    ("prefill, tokens/s", _figure("prefill_tokens_per_second", 1, 0)),
    ("decode, tokens/s", _figure("decode_tokens_per_second", 1, 0)),
    ("decode, sustained", _last_sustained),
    ("first token after, ms", _figure("time_to_first_token_seconds", 1e3, 0)),
    ("first load, s", _figure("first_load_seconds", 1, 2)),
    ("later load, s", _figure("later_load_seconds", 1, 2)),
    ("peak memory of the process, MB", _figure("peak_memory_bytes", 1e-6, 0)),
    ("battery current, mA", _reading("battery_milliamperes")),
    ("battery, degrees Celsius", _reading("temperature_celsius")),
    ("thermal status", _reading("thermal_status")),
)
