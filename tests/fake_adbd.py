"""A phone for the real adb client: adbd's side of the protocol over TCP, with a folder as its storage.

Protocol: platform/packages/modules/adb/protocol.txt and SYNC.TXT of the Android sources. Shell commands are run by sh,
with the phone's paths mapped into the folder; what only Android has (getprop, am, pm, pidof, df) is a script in bin/.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CNXN, OPEN, OKAY, CLSE, WRTE, AUTH = (
    struct.unpack("<I", name)[0] for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE", b"AUTH")
)
_BANNER = b"device::ro.product.name=fake;ro.product.model=Fake_Phone;ro.product.device=fake;\0"
_MAPPED = ("/data/local/tmp", "/sdcard")


@dataclass
class FakePhone:
    """``root`` is its storage. ``dies_after``: bytes of pushed data after which it is unplugged, once."""

    root: Path
    authorized: bool = True
    dies_after: int | None = None
    pushed: int = 0
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.root / "bin").mkdir(parents=True)
        for path in _MAPPED:
            self.local(path).mkdir(parents=True)
        for name, text in {
            "getprop": "case $1 in ro.build.version.sdk) echo 34;; ro.build.version.release) echo 14;; esac",
            "df": "echo Filesystem 1K-blocks Used Available Use% Mounted; echo /dev/x 1000000 1 999999 1% /data",
            "am": "true",
            "pidof": "echo 1234",
            "pm": "echo Success",
        }.items():
            self.script(name, text)
        phone = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _Connection(self.request, phone).serve()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.serial = f"127.0.0.1:{self._server.server_address[1]}"

    def script(self, name: str, text: str) -> None:
        """Make a command of the phone."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def local(self, path: str) -> Path:
        """Where a path of the phone is on this computer."""
        return self.root / os.path.normpath("/" + path).lstrip("/")

    def shell(self, command: str) -> bytes:
        self.commands.append(command)
        for path in _MAPPED:
            command = command.replace(path, str(self.local(path)))
        environment = {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment, timeout=60)
        return (done.stdout + done.stderr).replace(str(self.root).encode(), b"")

    def received(self, data: bytes) -> None:
        """Count pushed data; raise ConnectionError where the cable is pulled."""
        self.pushed += len(data)
        if self.dies_after is not None and self.pushed > self.dies_after:
            self.dies_after = None
            raise ConnectionError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Connection:
    """One connection of the adb server."""

    def __init__(self, connection: socket.socket, phone: FakePhone) -> None:
        self._socket = connection
        self._phone = phone
        self._waiting: list[tuple[int, int, int, bytes]] = []
        self._streams: dict[int, _Sync] = {}
        self._last = 0

    def serve(self) -> None:
        try:
            while True:
                self._answer(*(self._waiting.pop(0) if self._waiting else self._read()))
        except (EOFError, ConnectionError, OSError):
            self._socket.close()

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _read(self) -> tuple[int, int, int, bytes]:
        command, first, second, size, _, _ = struct.unpack("<6I", self._receive(24))
        return command, first, second, self._receive(size)

    def _send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        header = (command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        self._socket.sendall(struct.pack("<6I", *header) + data)

    def write(self, local: int, remote: int, data: bytes) -> None:
        """Send data on a stream; the other side must take each part before the next."""
        for start in range(0, len(data), 65536):
            self._send(WRTE, local, remote, data[start : start + 65536])
            while True:
                packet = self._read()
                if packet[0] in (OKAY, CLSE) and packet[2] == local:
                    break
                self._waiting.append(packet)

    def close_stream(self, local: int, remote: int) -> None:
        """End a stream from this side."""
        del self._streams[local]
        self._send(CLSE, local, remote)

    def _answer(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH) and not self._phone.authorized:
            self._send(AUTH, 1, 0, bytes(20))  # another token to sign: no key is ever known
        elif command == CNXN:
            self._send(CNXN, 0x01000000, 262144, _BANNER)
        elif command == OPEN:
            self._open(first, data.rstrip(b"\0").decode())
        elif command == WRTE and second in self._streams:
            self._send(OKAY, second, first)
            self._streams[second].take(data)
        elif command == CLSE and second in self._streams:
            self.close_stream(second, first)

    def _open(self, remote: int, service: str) -> None:
        self._last += 1
        kind, _, argument = service.partition(":")
        if kind in ("shell", "exec"):
            self._send(OKAY, self._last, remote)
            self.write(self._last, remote, self._phone.shell(argument))
            self._send(CLSE, self._last, remote)
        elif kind == "sync":
            self._streams[self._last] = _Sync(self, self._last, remote, self._phone)
            self._send(OKAY, self._last, remote)
        else:
            self._send(CLSE, 0, remote)


class _Sync:
    """The file protocol within one stream: STAT and SEND, which pushing needs."""

    def __init__(self, connection: _Connection, local: int, remote: int, phone: FakePhone) -> None:
        self._write = lambda data: connection.write(local, remote, data)
        self._close = lambda: connection.close_stream(local, remote)
        self._phone = phone
        self._data = b""
        self._target: Path | None = None

    def take(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= 8:
            name, size = self._data[:4], struct.unpack("<I", self._data[4:8])[0]
            if name == b"DONE":  # its size is the file's time
                self._data = self._data[8:]
                self._write(b"OKAY" + bytes(4))
                continue
            if len(self._data) < 8 + size:
                return
            argument, self._data = self._data[8 : 8 + size], self._data[8 + size :]
            self._request(name, argument)

    def _request(self, name: bytes, argument: bytes) -> None:
        if name == b"QUIT":
            self._close()
        elif name == b"STAT":
            path = self._phone.local(argument.decode())
            found = path.stat() if path.exists() else None
            fields = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime)) if found else (0, 0, 0)
            self._write(b"STAT" + struct.pack("<3I", *fields))
        elif name == b"SEND":
            self._target = self._phone.local(argument.decode().rpartition(",")[0])
            self._target.write_bytes(b"")
        elif name == b"DATA" and self._target is not None:
            with self._target.open("ab") as file:
                file.write(argument)
            self._phone.received(argument)


def adb_environment(port: int, home: Path) -> Mapping[str, str]:
    """What keeps a test's adb server and keys apart from the user's."""
    return {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "ADB_MDNS": "0"}
