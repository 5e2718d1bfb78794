"""The chips of data/chips.toml: bandwidth and arithmetic at their best, from published figures."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Multiply-adds of a core in a cycle: (int8, float32). Measured by cpufp (github.com/pigirons/cpufp, its result files
# and pull requests 30 and 36) on Cortex-A76 (32, 8), A510 (32 of int8), A720 (64, 8), Oryon (64, 16) and Apple M2
# (62, 16). The other cores have what the width of their vectors and their int8 instructions come to: assumed.
_MULTIPLY_ADDS: Mapping[str, tuple[int, int]] = {
    "cortex-a53": (8, 4), "cortex-a55": (16, 4), "cortex-a510": (32, 4), "cortex-a520": (32, 4),
    "cortex-a76": (32, 8), "cortex-a77": (32, 8), "cortex-a78": (32, 8),
    "cortex-a710": (64, 8), "cortex-a715": (64, 8), "cortex-a720": (64, 8),
    "cortex-x1": (64, 16), "cortex-x2": (128, 16), "cortex-x3": (128, 16), "cortex-x4": (128, 16),
    "oryon": (64, 16),
    "apple-firestorm": (64, 16), "apple-avalanche": (64, 16), "apple-everest": (64, 16),
    "apple-icestorm": (32, 8), "apple-blizzard": (32, 8), "apple-sawtooth": (32, 8),
    "zen5": (128, 32), "zen5c": (128, 32), "golden-cove": (128, 16), "gracemont": (32, 8),
}  # fmt: skip
_THREADS = 4  # what the apps take, and the published figures were measured with


@dataclass(frozen=True)
class Chip:
    """A chip.

    cores      (how many, which kind, GHz), the fastest first
    transfers  of its memory, millions a second, over ``bits`` lines
    """

    key: str
    name: str
    cores: tuple[tuple[int, str, float], ...]
    transfers: int
    bits: int
    features: tuple[str, ...] = ()
    npu: str = ""

    @property
    def bandwidth(self) -> float:
        """Of its memory at best, bytes per second."""
        return self.transfers * 1e6 * self.bits / 8

    @property
    def int8_rate(self) -> float:
        """Multiply-adds of int8 per second of its four fastest cores, at best."""
        return self._rate(0)

    @property
    def float_rate(self) -> float:
        """The same of float32."""
        return self._rate(1)

    def _rate(self, which: int) -> float:
        each = [_MULTIPLY_ADDS[kind][which] * ghz * 1e9 for count, kind, ghz in self.cores for _ in range(count)]
        return sum(sorted(each, reverse=True)[:_THREADS])


@cache
def read_chips() -> Mapping[str, Chip]:
    """All chips, by key."""
    text = (Path(__file__).parent / "data" / "chips.toml").read_text(encoding="utf-8")
    return {key: parse_chip(key, entry) for key, entry in tomllib.loads(text).items()}


def parse_chip(key: str, entry: Mapping[str, object]) -> Chip:
    """A chip from its table in a TOML file; raises KeyError or ValueError if that is not one."""
    cores = tuple(_cluster(str(cluster)) for cluster in _list(entry["cpu"]))
    features = tuple(map(str, _list(entry.get("features", []))))
    transfers, bits = int(str(entry["transfers"])), int(str(entry["bits"]))
    return Chip(key, str(entry["name"]), cores, transfers, bits, features, str(entry.get("npu", "")))


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _cluster(text: str) -> tuple[int, str, float]:
    count, kind, ghz = text.split()
    if kind not in _MULTIPLY_ADDS:
        raise ValueError(f"no core {kind!r}; there are {', '.join(_MULTIPLY_ADDS)}")
    return int(count), kind, float(ghz)
