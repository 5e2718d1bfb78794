"""`pocketlm verify BUNDLE --on arm64`: the certificate's column for an ARM core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import InputError
from .arm64_arithmetic import arithmetic
from .arm64_lane import find_lane, parse_place
from .arm64_target import TARGETS, arm64_runs, on_arm64
from .certificate import TargetCertificate
from .devices import find_device
from .judge import Judgement
from .target import Target
from .targets import get_target


def check_on_arm64(place: str, device: str | None, names: Sequence[str], explicit: bool) -> tuple[str, ...]:
    """Those targets that can run there.

    explicit  the user named the targets

    Raises InputError if none can, or one that was named cannot; for a place or a device that there is not; and if the
    lane was not prepared.
    """
    find_device(device, parse_place(place))
    find_lane()
    able = tuple(name for name in names if name in TARGETS)
    if not able or (explicit and len(able) < len(names)):
        raise InputError(f"--on {place} runs {' and '.join(TARGETS)}; Core ML runs on Apple's systems alone")
    return able


def verify_on_arm64(
    name: str,
    place: str,
    device: str | None,
    judging: Callable[[Target], Judgement],
    replaying: Callable[[Judgement, str], TargetCertificate],
) -> TargetCertificate:
    """Judge a target's artifact on a core, in the memory of a phone that has one.

    judging    of a target's artifact; ``replaying`` holds what it gave against an entry of golden.json
    """
    core = parse_place(place)
    phone = find_device(device, core)
    with arm64_runs(find_lane(), core, None if phone is None else phone.app_bytes) as runs:
        judgement = judging(on_arm64(get_target(name), runs))
        certificate = replaying(judgement, arithmetic(name, core))
        hardware = runs.hardware(None if phone is None else phone.name)
        failures = tuple(_with_device(line, hardware.device) for line in certificate.failures)
        return replace(certificate, hardware=hardware, failures=failures)


def _with_device(line: str, device: str | None) -> str:
    return f"{line}: what an app may use on {device}" if line.startswith("memory:") else line
