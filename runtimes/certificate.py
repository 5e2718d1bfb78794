"""The certificate: every deviation of an artifact from its model, told apart by cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """As a JSON object without the fields that were not measured."""
        return {"passed": self.passed, **_without_none(asdict(self))}


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


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return list(value) if isinstance(value, tuple) else value
