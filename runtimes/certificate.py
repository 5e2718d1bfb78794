"""The certificate: every deviation of an artifact from its model, told apart by cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True)
class Error:
    """One kind of error.

    kl, top1          KL(expected || actual) in nats, share of equal most likely tokens; means over the positions
    max_abs_logit     largest difference of a logit
    perplexity_ratio  where both sides were run on the same prose
    noise_floor_kl    what 1e-6 of noise on the embedding does to the same arithmetic
    """

    kl: float
    top1: float
    max_abs_logit: float | None = None
    perplexity_ratio: float | None = None
    noise_floor_kl: float | None = None


@dataclass(frozen=True)
class Exactness:
    """Programs of one operation or one layer, with the model's weights, against the emulation fed the same input.

    programs   how many were run
    worst      the one that deviates most; ``deviation`` its largest difference over its largest value
    """

    programs: int
    worst: str
    deviation: float


@dataclass(frozen=True)
class Hardware:
    """What an artifact ran on, where that was not this machine's own processor.

    core                the core's name; emulated unless it is "native"
    instructions        places in the code where int8 was multiplied, by instruction; None where they cannot be counted
    device              the phone whose memory limit held; None without one
    memory_limit_bytes  that an app may use there; ``memory_limited_by`` what enforced it
    peak_memory_bytes   what loading and running the artifact took, the emulator's own growth included
    """

    core: str
    instructions: Mapping[str, int] | None
    device: str | None = None
    memory_limit_bytes: int | None = None
    memory_limited_by: str | None = None
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class TargetCertificate:
    """What was measured on one finished artifact.

    weights_identical   every code and scale in the file equals the canonical one
    tensors_checked     matrices compared; ``constants_checked`` counts norms, biases, epsilons, attention parameters
    positions           tokens over which errors are means
    failures            one line for each limit that was exceeded, naming what and by how much; empty if passed
    evaluated_by        what ran the artifact
    notes               what a reader must know to understand the figures
    lint                constructs known to be slow or to fail on a device, with their sources
    size_bytes          of the artifact; ``seconds`` is the time that verifying it took, ``write_seconds`` writing it
    exactness           of single operations, where the target runs them apart
    size_bytes          of the artifact; ``seconds`` the time its verification took
    hardware            what it ran on; None is this machine
    cache               what a cache in int8 costs, on the reference; None where it keeps floating point
    left_out            errors that were not measured because the user asked for identity alone
    None where a thing was not measured: quantization and total without the source model, conversion where the runtime
    cannot compute with fp32 activations.
    """

    weights_identical: bool
    tensors_checked: int
    constants_checked: int
    positions: int
    quantization: Error | None
    conversion: Error | None
    activation: Error | None
    runtime: Error | None
    total: Error | None
    failures: tuple[str, ...]
    evaluated_by: str
    notes: tuple[str, ...] = ()
    lint: tuple[str, ...] = ()
    size_bytes: int = 0
    seconds: float = 0.0
    write_seconds: float | None = None
    exactness: Exactness | None = None
    hardware: Hardware | None = None
    left_out: tuple[str, ...] = ()
    cache: Error | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """As a JSON object without the fields that were not measured; ``left_out`` only if there is something in it."""
        content = {"passed": self.passed, **_without_none(asdict(self))}
        if not self.left_out:
            del content["left_out"]
        return content


@dataclass(frozen=True)
class Certificate:
    """The certificates of a bundle's targets."""

    targets: Mapping[str, TargetCertificate]

    @property
    def passed(self) -> bool:
        """Whether every target passed."""
        return all(target.passed for target in self.targets.values())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"passed": self.passed, "targets": {name: target.to_json() for name, target in self.targets.items()}}


def error_from_json(content: Mapping[str, Any] | None) -> Error | None:
    """Read back one error of a certificate."""
    return None if content is None else Error(**content)


def certificate_from_json(content: Mapping[str, Any]) -> Certificate:
    """Read back what ``Certificate.to_json`` gave; an empty object is a certificate of no target.

    Raises KeyError, TypeError, ValueError, OverflowError or AttributeError for anything else. Numbers may be
    infinite or no number, as those of a failed one are.
    """
    targets = content.get("targets", {})
    if not isinstance(targets, dict):
        raise TypeError("the certificate's targets are not an object")
    return Certificate({name: _target_from_json(target) for name, target in targets.items()})


def _target_from_json(content: Mapping[str, Any]) -> TargetCertificate:
    fields_given = {key: value for key, value in content.items() if key != "passed"}
    for key in ("quantization", "conversion", "cache", "activation", "runtime", "total"):
        fields_given[key] = None if content.get(key) is None else _checked(Error(**content[key]))
    if content.get("exactness") is not None:
        fields_given["exactness"] = _checked(Exactness(**content["exactness"]))
    if content.get("hardware") is not None:
        fields_given["hardware"] = _checked(Hardware(**content["hardware"]))
    for key in ("failures", "notes", "lint", "left_out"):
        lines = content.get(key, [])
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise TypeError(f"{key} are not lines of text")
        fields_given[key] = tuple(lines)
    target = _checked(TargetCertificate(**fields_given))
    if content["passed"] is not target.passed:
        raise ValueError("passed contradicts the list of failures")
    return target


_KINDS: Mapping[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


_Record = TypeVar("_Record", Error, Exactness, Hardware, TargetCertificate)


def _checked(record: _Record) -> _Record:
    """The record if its plain fields hold what their annotations say; raises TypeError otherwise."""
    for field in fields(record):
        kind, _, optional = str(field.type).partition(" | ")
        value = getattr(record, field.name)
        if kind not in _KINDS or (optional and value is None):
            continue
        if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise TypeError(f"{field.name} is {value!r}")
        if kind == "float" and isinstance(value, int):
            float(value)  # raises OverflowError if it is too large for one
    return record


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return list(value) if isinstance(value, tuple) else value
