"""Fetching a page that somebody else's server wrote: bounded in time and size, and never from inside the network.

A redirect, or a name that resolves to a private address, could make this machine ask its own network for things
(server-side request forgery). Only the server that the user named may be private.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from .._version import __version__
from ..errors import InputError
from .search_passages import SearchError

TIMEOUT_SECONDS = 10.0  # of a whole request with its redirects
LARGEST_ANSWER = 2 << 20  # bytes
_REDIRECTS = 3
_REDIRECT_CODES = (301, 302, 303, 307, 308)
# Wikimedia asks programs to say what they are.
_HEADERS = (
    ("User-Agent", f"pocketlm/{__version__} (on-device language models)"),
    ("Accept", "application/json"),
)


def check_url(url: str) -> None:
    """Raise InputError unless this is an address that may be asked."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"{url}: is no http or https address")


def fetch_json(url: str, *, private_host: tuple[str, int] | None = None, seconds: float = TIMEOUT_SECONDS) -> Any:
    """The JSON that a URL answers with.

    private_host  (host, port) of a server that may have a private address, because the user named it

    Raises SearchError with one line for anything that goes wrong: no network, a refusal, an answer that is too slow,
    too large or no JSON, a redirect to a private address.
    """
    deadline = time.monotonic() + seconds
    backend = _PublicBackend(private_host)
    try:
        with httpcore2.ConnectionPool(network_backend=backend, max_connections=1) as pool:
            for _ in range(_REDIRECTS + 1):
                body, location = _ask(pool, url, deadline)
                if location is None:
                    return json.loads(body)
                url = urljoin(url, location)
                check_url(url)
    except (InputError, SearchError) as error:
        raise SearchError(str(error)) from error
    except (httpcore2.TimeoutException, TimeoutError) as error:
        raise SearchError(f"{_site(url)} did not answer within {seconds:.0f} s") from error
    except (ValueError, RecursionError) as error:  # from json.loads
        raise SearchError(f"{_site(url)} did not answer with JSON") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
        raise SearchError(f"{_site(url)} cannot be reached ({error})") from error
    raise SearchError(f"{_site(url)} redirects without end")


def _ask(pool: httpcore2.ConnectionPool, url: str, deadline: float) -> tuple[bytes, str | None]:
    """One request: the body, and where it redirects to."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    url = _ascii(url)
    timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), left)}
    with pool.stream("GET", url, headers=_HEADERS, extensions=timeouts) as answer:
        if answer.status in _REDIRECT_CODES:
            headers = {name.lower(): value for name, value in answer.headers}
            return b"", headers.get(b"location", b"").decode("latin-1") or url
        if answer.status != 200:
            raise SearchError(f"{_site(url)} answers with HTTP {answer.status}")
        return _read(answer.iter_stream(), url, deadline), None


def _ascii(url: str) -> str:
    """An address as it is sent: letters beyond ASCII as percent signs and bytes, in a host's name by IDNA."""
    if url.isascii():
        return url
    parts = urlsplit(url)
    try:
        host = parts.netloc.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise SearchError(f"{_site(url)} is no name of a server") from error
    return parts._replace(netloc=host, path=_quoted(parts.path), query=_quoted(parts.query), fragment="").geturl()


def _quoted(text: str) -> str:
    return "".join(character if character.isascii() else quote(character, errors="replace") for character in text)


def _read(chunks: Iterable[bytes], url: str, deadline: float) -> bytes:
    body = b""
    for chunk in chunks:
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise SearchError(f"{_site(url)} answers with more than {LARGEST_ANSWER >> 20} MB")
        if time.monotonic() > deadline:  # a server that drips keeps each single read within its timeout
            raise TimeoutError
    return body


def _site(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


class _PublicBackend(httpcore2.NetworkBackend):
    """Connects to addresses that were looked at: the name is resolved once, so it cannot change in between."""

    def __init__(self, private_host: tuple[str, int] | None) -> None:
        self._private_host = private_host
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = list(dict.fromkeys(str(found[4][0]) for found in _resolve(host, port)))
        if (host, port) != self._private_host and not all(map(is_public, addresses)):
            raise SearchError(f"{host} is a private address, and not the server that you named; it was not asked")
        errors: list[Exception] = []
        for address in addresses:
            try:
                return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.NetworkError as error:
                errors.append(error)
        raise errors[0]


def _resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        raise SearchError(f"{host} cannot be found; is there a network?") from error


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public Internet, also when it is written as IPv6 around IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
