"""The adb program of Android's platform tools: it knows how to authenticate, and every protocol that phones want."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

_STATES = {
    "device": "",
    "unauthorized": "it does not trust this computer; unlock it and allow USB debugging in the dialog that it shows",
    "authorizing": "it is asking for permission; allow USB debugging in the dialog that it shows",
    "offline": "it does not answer; unplug it, plug it in again, or run: adb reconnect",
    "recovery": "it is in recovery mode; start it normally",
    "bootloader": "it is in its bootloader; start it normally",
    "sideload": "it is in sideload mode; start it normally",
}
_EXIT = "pocketlm exit "  # phones before Android 7 do not report how a command ended


@dataclass(frozen=True)
class Listed:
    """A line of `adb devices -l`: ``trouble`` is empty, or says what to do."""

    serial: str
    model: str
    trouble: str


def list_devices() -> list[Listed]:
    """Everything that adb sees."""
    found = []
    for line in _run(["devices", "-l"], 60).splitlines():
        fields = line.split()
        if len(fields) < 2 or line.startswith(("*", "List of")):
            continue
        model = next((field.removeprefix("model:") for field in fields if field.startswith("model:")), "")
        state = "no permissions" if "no permissions" in line else fields[1]
        trouble = _STATES.get(state, f"adb reports it as {state}; see: adb devices -l")
        found.append(Listed(fields[0], model.replace("_", " "), trouble))
    return found


@dataclass(frozen=True)
class Adb:
    """One device. Every method raises InputError if the device is gone or refuses."""

    serial: str

    def run(self, arguments: Sequence[str], timeout: float = 120) -> str:
        """Run adb for this device; what it prints."""
        return _run(["-s", self.serial, *arguments], timeout)

    def shell(self, *command: str, timeout: float = 120) -> str:
        """Run a command on the device, given in words; its output. Raises InputError if it fails there."""
        code, output = self.try_shell(*command, timeout=timeout)
        if code != 0:
            raise InputError(f"{self.serial}: {command[0]} failed ({_line(output) or f'exit code {code}'})")
        return output

    def try_shell(self, *command: str, timeout: float = 120) -> tuple[int, str]:
        """Exit code and output of a command on the device."""
        output = self.run(["shell", f"{shlex.join(command)} 2>&1; echo {shlex.quote(_EXIT)}$?"], timeout)
        text, mark, code = output.replace("\r\n", "\n").rpartition(_EXIT)
        if not mark or not code.strip().isdigit():
            raise InputError(f"{self.serial}: the connection broke; plug the phone in again and repeat the command")
        return int(code), text

    def property(self, name: str) -> str:
        """A system property."""
        return self.shell("getprop", name).strip()

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device."""
        self.run(["push", str(local), remote], timeout=3600)


def _run(arguments: Sequence[str], timeout: float) -> str:
    try:
        done = subprocess.run(["adb", *arguments], capture_output=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise InputError("adb is not installed; install Android's platform tools (Debian: apt install adb)") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"the phone did not answer for {timeout:.0f} s; plug it in again and repeat the command"
        ) from error
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise InputError(_explain(done.stderr.decode("utf-8", "replace") + output))
    return output


_GONE = re.compile(
    r"device '.*' not found|device offline|no devices|closed|connection reset|EOF|couldn't (read|write)|failed to read"
)


def _explain(message: str) -> str:
    """One line for what adb says on failure; some versions say it on standard output, others on standard error."""
    errors = [line for line in message.splitlines() if line.startswith(("adb: error:", "error:"))]
    line = _line(errors[0] if errors else message)
    if _GONE.search(line):
        return f"the phone is gone ({line}); plug it in again and repeat the command, which goes on where it was"
    if "unauthorized" in line:
        return _STATES["unauthorized"]
    if "No space left" in message:
        return "the phone is full; free some space on it and repeat the command"
    return f"adb failed: {line}"


def _line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
