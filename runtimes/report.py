"""Certificates for people (a table) and for CI (JUnit XML)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..errors import InputError
from .certificate import Certificate, Error, TargetCertificate

if TYPE_CHECKING:
    from rich.table import Table


def certificate_table(certificate: Certificate) -> Table:
    """One column for each target, one row for each thing measured; fits 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(title="Certificate", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for name in certificate.targets:
        table.add_column(name.replace(" ", "\n").replace("arm64:", ""), justify="right")
    targets = list(certificate.targets.values())
    emulated = any(target.hardware is not None for target in targets)
    rows = (*_ROWS[:2], *(_HARDWARE_ROWS if emulated else ()), *_ROWS[2:])
    for label, cell, end in rows:
        if label == _CACHE_LABEL and all(target.cache is None for target in targets):
            continue
        table.add_row(label, *(cell(target) for target in targets), end_section=end)
    return table


def _instructions(target: TargetCertificate) -> str:
    """Those that multiply int8, the two most frequent; none where a core has none."""
    if target.hardware is None or target.hardware.instructions is None:
        return "-"
    counted = sorted(target.hardware.instructions.items(), key=lambda item: -item[1])
    return " ".join(f"{name} {count}" for name, count in counted[:2]) or "none"


def _memory(target: TargetCertificate) -> str:
    hardware = target.hardware
    if hardware is None or not hardware.peak_memory_bytes:
        return "-"
    limit = "" if hardware.memory_limit_bytes is None else f" of {hardware.memory_limit_bytes / 1e6:.0f}"
    return f"{hardware.peak_memory_bytes / 1e6:.0f}{limit} MB"


def _kl(error: Error | None) -> str:
    return "-" if error is None else f"{error.kl:.2g}"


def _top1(error: Error | None) -> str:
    return "-" if error is None else f"{100 * error.top1:.1f} %"


def _perplexity(error: Error | None) -> str:
    if error is None or error.perplexity_ratio is None:
        return "-"
    return f"{100 * (error.perplexity_ratio - 1):+.1f} %"


def _floor(error: Error | None) -> str:
    return "-" if error is None or error.noise_floor_kl is None else f"{error.noise_floor_kl:.2g}"


def _worst(target: TargetCertificate) -> str:
    return "-" if target.exactness is None else f"{target.exactness.deviation:.2g} ({target.exactness.programs})"


def _verdict(target: TargetCertificate) -> str:
    if not target.passed:
        return "FAILED"
    return "weights only" if target.left_out else "passed"


_Cell = Callable[[TargetCertificate], str]

_CACHE_LABEL = "cache          KL"  # a row for those who keep int8 in it

# Label, what stands in a target's column, whether a line is drawn below.
_ROWS: tuple[tuple[str, _Cell, bool], ...] = (
    ("size", lambda target: f"{target.size_bytes / 1e6:.1f} MB", False),
    ("weights identical", lambda t: f"{'yes' if t.weights_identical else 'NO'} ({t.tensors_checked})", True),
    ("conversion     KL", lambda target: _kl(target.conversion), False),
    ("one operation", lambda target: _worst(target), False),
    ("runtime        KL", lambda target: _kl(target.runtime), False),
    ("  noise floor  KL", lambda target: _floor(target.runtime), False),
    ("activation     KL", lambda target: _kl(target.activation), False),
    (_CACHE_LABEL, lambda target: _kl(target.cache), False),
    ("quantization   KL", lambda target: _kl(target.quantization), True),
    ("total          KL", lambda target: _kl(target.total), False),
    ("  same top token", lambda target: _top1(target.total), False),
    ("  perplexity", lambda target: _perplexity(target.total), True),
    ("written in", lambda target: "-" if target.write_seconds is None else f"{target.write_seconds:.1f} s", False),
    ("verified in", lambda target: f"{target.seconds:.1f} s", False),
    ("verdict", _verdict, False),
)

_HARDWARE_ROWS: tuple[tuple[str, _Cell, bool], ...] = (
    ("int8 instructions", _instructions, False),
    ("memory", _memory, True),
)


def junit_xml(certificate: Certificate) -> bytes:
    """One test case for each target and each of its errors, as CI systems read them."""
    suite = ElementTree.Element("testsuite", name="pocketlm verify")
    for name, target in certificate.targets.items():
        for check in ("identity", "conversion", "runtime", "total", *(("memory",) if target.hardware else ())):
            case = ElementTree.SubElement(suite, "testcase", classname=f"pocketlm.{name}", name=check)
            case.set("time", f"{target.seconds if check == 'identity' else 0:.2f}")
            failures = [line for line in target.failures if _check_of(line) == check]
            for line in failures[:1]:
                failure = ElementTree.SubElement(case, "failure", message=_xml_text(line))
                failure.text = _xml_text("\n".join(failures))
    cases = len(suite)
    suite.set("tests", str(cases))
    suite.set("failures", str(sum(case.find("failure") is not None for case in suite)))
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _check_of(line: str) -> str:
    """Which test case a failure belongs to, by how its line begins."""
    start = line.partition(":")[0]
    if start in ("conversion", "runtime", "memory"):
        return start
    if start == "exactness":
        return "runtime"
    if start in ("total", "quantization", "cache", "activation"):
        return "total"
    if start == "golden replay":
        return "runtime"
    return "conversion" if "deviates" in line else "identity"


def _xml_text(text: str) -> str:
    """Without characters that XML cannot hold."""
    return "".join(character for character in text if character >= " " or character in "\t\n")


def check_junit(path: Path) -> None:
    """Raise InputError if a report could not be written there: better known before the work than after it."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written; name another file with --junit")


def write_junit(path: Path, certificate: Certificate) -> None:
    """Write the report; raises InputError if the path cannot be written."""
    try:
        path.write_bytes(junit_xml(certificate))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def failure_lines(certificate: Certificate) -> list[str]:
    """What failed, a line each, with the target's name in front."""
    return [f"{name}: {line}" for name, target in certificate.targets.items() for line in target.failures]


def describe(target: TargetCertificate) -> str:
    """One line on what was judged by what."""
    return f"{target.positions} positions, {target.tensors_checked} tensors, by {target.evaluated_by}"
