"""Asking a server that may be slow, busy, hostile or expensive: limits, retries, a budget, a key that stays here."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from .._version import __version__
from ..errors import InputError
from .plain_text import plain

LARGEST_ANSWER = 16 << 20  # bytes: log-probabilities of a few dozen prompts
OPENAI = "api.openai.com"
DEFAULT_KEY = "OPENAI_API_KEY"
_TRIES = 6
_LONGEST_WAIT = 60.0  # seconds between two of them
_LONGEST_MESSAGE = 300  # characters of a server's error that are shown
_SHORTEST_SECRET = 8  # characters: servers that need no key are given words such as "none", which answers may hold
_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))


class EndpointError(InputError):
    """An endpoint that cannot be used; one line."""


class RefusedError(EndpointError):
    """This one request was refused (4xx); another may be answered."""


class BudgetError(InputError):
    """The calls that were allowed are used up."""

    def __init__(self) -> None:
        super().__init__("--max-calls allows too few calls for one answer; allow more")


@dataclass(frozen=True)
class Address:
    """Where an endpoint is: ``base`` ends before the path of a call; ``local`` says whether it is on this machine."""

    base: str
    host: str
    port: int
    local: bool


def parse_address(url: str) -> Address:
    """Raises InputError unless a URL can be asked; what it holds beyond an address is never repeated."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        httpx2.URL(url)
        (host or "").encode("idna")
    except (ValueError, httpx2.InvalidURL):
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0 or not url.isprintable():
        raise InputError("--against takes the address of an endpoint, such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("--against takes a plain address: keys go into the environment (--key-env), not into it")
    path = parts.path.rstrip("/") or "/v1"
    return Address(
        f"{parts.scheme}://{parts.netloc}{path}", host, port or (443 if parts.scheme == "https" else 80), _is_here(host)
    )


def _is_here(host: str) -> bool:
    return host == "localhost" or _property(host, "is_loopback")


def _property(host: str, name: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), name))
    except ValueError:
        return False


def read_key(address: Address, variable: str | None) -> str | None:
    """The key for an endpoint, from the environment.

    variable  its name; without one, OPENAI_API_KEY is read for OpenAI's own host and for nobody else's

    Raises InputError if the variable is not set, or its key would travel unencrypted.
    """
    if variable is None:
        return os.environ.get(DEFAULT_KEY, "").strip() or None if address.host == OPENAI else None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"the environment has no {variable}; set it to the endpoint's key")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"what {variable} holds is no key: it has characters that no header may have")
    if address.base.startswith("http:") and not (address.local or _property(address.host, "is_private")):
        raise InputError(f"the key in {variable} would be sent unencrypted to {address.host}; use https")
    return key


@dataclass(frozen=True)
class Answer:
    """JSON, how long the request that brought it took, and whether it was the first try."""

    content: Any
    seconds: float
    retried: bool


@dataclass
class Connection:
    """Asks one endpoint, and counts.

    most_calls  requests that may be sent, retries included; None is no limit
    seconds     that one answer may take as a whole
    sleep       waits between tries
    """

    address: Address
    key: str | None = field(repr=False)
    most_calls: int | None = None
    seconds: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    calls: int = field(default=0, init=False)
    _answered: bool = field(default=False, init=False)
    _client: httpx2.Client | None = field(default=None, init=False, repr=False)

    def get(self, path: str) -> Answer:
        """The answer to a GET; see ``post``."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a POST of JSON.

        What may pass (429, 5xx, timeouts, broken connections) is tried again after a while, or when the server says.

        Raises RefusedError for other 4xx, EndpointError for what makes the endpoint useless, BudgetError.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        for attempt in range(_TRIES):
            if self.most_calls is not None and self.calls >= self.most_calls:
                raise BudgetError
            self.calls += 1
            started = time.perf_counter()
            wait: float | None = None
            try:
                status, headers, text = self._once(method, path, body)
                self._answered = True
                if status not in _AGAIN or _is_final(text):
                    return Answer(self._judge(status, text), time.perf_counter() - started, attempt > 0)
                problem = f"answers with HTTP {status}{self._message(text)}"
                wait = _retry_after(headers)
            except httpx2.TimeoutException:
                problem = f"did not answer within {self.seconds:.0f} s (--timeout)"
            except httpx2.TransportError as error:
                problem = f"cannot be reached ({self.clean(str(error)) or type(error).__name__})"
                if isinstance(error, httpx2.ConnectError) and not self._answered:
                    break  # nobody is there, rather than somebody busy
            if attempt + 1 < _TRIES:
                self.sleep(_backoff(attempt) if wait is None else wait)
        raise EndpointError(f"{self.address.base} {problem}")

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        deadline = time.monotonic() + self.seconds
        with self._open().stream(method, self.address.base + path, content=body) as answer:
            received = bytearray()
            for chunk in answer.iter_raw():
                received += chunk
                if len(received) > LARGEST_ANSWER:
                    raise EndpointError(f"{self.address.base} answers with more than {LARGEST_ANSWER >> 20} MB")
                if time.monotonic() > deadline:  # a server that drips keeps each single read within its timeout
                    raise httpx2.ReadTimeout("too slow")
            return answer.status_code, answer.headers, bytes(received)

    def _open(self) -> httpx2.Client:
        if self._client is None:
            headers = {
                "User-Agent": f"pocketlm/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # the limit is for what is unpacked, too
                "Content-Type": "application/json",
            }
            if self.key is not None:
                headers["Authorization"] = f"Bearer {self.key}"
            # Redirects are not followed: they would carry the key elsewhere.
            self._client = httpx2.Client(headers=headers, timeout=self.seconds, trust_env=not self.address.local)
        return self._client

    def _judge(self, status: int, text: bytes) -> Any:
        """The content of an answer that is final."""
        where = self.address.base
        if status in (401, 403):
            hint = "give the name of the variable that holds its key with --key-env" if self.key is None else ""
            raise EndpointError(f"{where} refuses the key{self._message(text)}" + (f"; {hint}" if hint else ""))
        if 300 <= status < 400:
            raise EndpointError(f"{where} redirects elsewhere (HTTP {status}); name the address that answers")
        if status != 200:
            error = RefusedError if 400 <= status < 500 and status != 429 else EndpointError
            raise error(f"{where} answers with HTTP {status}{self._message(text)}")
        content = _json(text)
        if not isinstance(content, dict):
            raise EndpointError(f"{where} did not answer with a JSON object; is it an OpenAI-compatible endpoint?")
        return content

    def _message(self, text: bytes) -> str:
        """What a server says of an error, in brackets."""
        content = _json(text)
        error = content.get("error") if isinstance(content, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        shown = self.clean(said if isinstance(said, str) else text[:_LONGEST_MESSAGE].decode("utf-8", "replace"))
        return f" ({shown})" if shown else ""

    def clean(self, text: str) -> str:
        """A server's words on one line, without control characters, and without the key."""
        return plain(self.without_key(" ".join(text.split())), _LONGEST_MESSAGE)

    def without_key(self, text: str) -> str:
        """A text in which the key is blotted out, should a server repeat it."""
        secret = self.key is not None and len(self.key) >= _SHORTEST_SECRET
        return text.replace(self.key or "", "[key]") if secret else text

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_final(text: bytes) -> bool:
    """OpenAI answers 429 also when there is no money left, which no waiting mends."""
    content = _json(text)
    error = content.get("error") if isinstance(content, dict) else None
    return isinstance(error, dict) and error.get("code") == "insufficient_quota"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for, within reason."""
    try:
        wait = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(wait, _LONGEST_WAIT) if wait >= 0 else None


def _backoff(attempt: int) -> float:
    """1, 2, 4, ... seconds, each shortened by chance so that clients do not come back all at once."""
    return min(_LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1.0)
