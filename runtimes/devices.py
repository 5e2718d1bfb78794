"""The phones and laptops of data/devices.toml: what a model may use there. Each figure has its source in that file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import InputError
from .chips import Chip, read_chips

NO_DEVICE = "none"


@dataclass(frozen=True)
class Device:
    """A phone or laptop.

    key              its name on the command line
    name             its name in words
    ram_mb           memory of the smallest model sold, MB of 2**20 bytes
    app_mb           what one app may use of it, without asking for more
    cores            its kinds of cores that the arm64 lane can emulate, the largest first
    kind             phone or laptop
    chip             what it computes with
    app_entitled_mb  what an app may use on an iPhone that asks for more, where somebody measured it
    """

    key: str
    name: str
    ram_mb: int
    app_mb: int
    cores: tuple[str, ...]
    kind: str
    chip: Chip
    app_entitled_mb: int | None = None

    @property
    def app_bytes(self) -> int:
        """What one app may use, bytes."""
        return self.app_mb << 20


@cache
def read_devices() -> Mapping[str, Device]:
    """All of them, by key."""
    text = (Path(__file__).parent / "data" / "devices.toml").read_text(encoding="utf-8")
    chips = read_chips()
    return {
        key: Device(
            key,
            entry["name"],
            entry["ram_mb"],
            entry["app_mb"],
            tuple(entry["cores"]),
            entry["kind"],
            chips[entry["chip"]],
            entry.get("app_entitled_mb"),
        )
        for key, entry in tomllib.loads(text).items()
    }


def find_device(key: str | None, core: str) -> Device | None:
    """The phone with this key, or for None the one with least memory that has such a core; None is no phone.

    Raises InputError for an unknown key.
    """
    devices = read_devices()
    if key == NO_DEVICE:
        return None
    if key is not None and key not in devices:
        raise InputError(f"no device {key!r}; there are {', '.join(devices)}, and {NO_DEVICE} for no memory limit")
    if key is not None:
        return devices[key]
    return min((device for device in devices.values() if core in device.cores), key=_app_mb, default=None)


def _app_mb(device: Device) -> int:
    return device.app_mb
