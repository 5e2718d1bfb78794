"""Sources that are servers: real sockets on the loopback interface, and servers that misbehave."""

import json
import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes import search_http
from pocketlm.runtimes.search_http import fetch_json, is_public
from pocketlm.runtimes.search_passages import LONGEST, Passage, SearchError
from pocketlm.runtimes.search_source import SearxngSource, WikipediaSource, open_source, search_all


@pytest.fixture
def server():
    """A server whose answers are functions in ``routes``: path -> (status, headers, body)."""
    routes, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = routes[urlsplit(self.path).path]
            status, headers, body = answer(self) if callable(answer) else answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for chunk in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(chunk)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.routes, running.asked, running.url = routes, asked, f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


def answer(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def ask(server, path, seconds=5.0):
    return fetch_json(server.url + path, private_host=("127.0.0.1", server.server_port), seconds=seconds)


def test_searxng(server):
    results = [
        {"title": "Ben <b>Nevis</b>", "content": "It is 1345 m\x1b[2J high &amp; wet.", "url": "https://a.example/x"},
        {"title": "empty", "content": None, "url": 5},
        "nonsense",
        {"title": "long", "content": "y" * 10_000, "url": "https://b.example"},
    ]
    server.routes["/base/search"] = answer({"results": results})
    source = SearxngSource(f"{server.url}/base/")
    found = source.search(["ben", "nevis"], 3)
    assert found[0] == Passage("Ben Nevis", "It is 1345 m [2J high & wet.", "https://a.example/x")
    assert [len(passage.text) for passage in found[1:]] == [LONGEST]
    assert parse_qs(urlsplit(server.asked[0]).query) == {"q": ["ben nevis"], "format": ["json"]}


def test_wikipedia(server):
    pages = [
        {"index": 2, "title": "Loch Ness", "extract": "A lake."},
        {"index": 1, "title": "Ben Nevis", "extract": "A hill."},
        {"index": 3, "title": "no text"},
    ]
    server.routes["/w/api.php"] = answer({"query": {"pages": pages}})
    source = WikipediaSource("en", f"{server.url}/w/api.php")
    assert source.search(["hill"], 3) == [
        Passage("Ben Nevis", "A hill.", "https://en.wikipedia.org/wiki/Ben_Nevis"),
        Passage("Loch Ness", "A lake.", "https://en.wikipedia.org/wiki/Loch_Ness"),
    ]
    server.routes["/w/api.php"] = answer({"batchcomplete": True})
    assert source.search(["hill"], 3) == []


@pytest.mark.parametrize("given", ["wikipedia:e/n", "wikipedia:en.evil", "searxng:ftp://a", "searxng:", "https://a.example",
                                   "searxng:http://[", "absent.db", "searxng:file:///etc/passwd"])  # fmt: skip
def test_what_is_no_source(given):
    with pytest.raises(InputError):
        open_source(given)


def test_redirects_within_what_the_user_named(server):
    server.routes["/a"] = (302, {"Location": "/b"}, b"")
    server.routes["/b"] = answer({"ok": 1})
    assert ask(server, "/a") == {"ok": 1}
    server.routes["/loop"] = (302, {"Location": "/loop"}, b"")
    with pytest.raises(SearchError, match="redirects without end"):
        ask(server, "/loop")


@pytest.mark.parametrize("scheme", ["http://{}/", "http://localhost:{port}/", "http://0.0.0.0:{port}/", "http://[::1]:{port}/",
                                    "http://2130706433:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
                                    "http://169.254.169.254/latest", "http://10.0.0.1/"])  # fmt: skip
def test_redirects_to_private_addresses_are_not_followed(server, scheme):
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        server.routes["/a"] = (302, {"Location": scheme.format(f"127.0.0.1:{port}", port=port)}, b"")
        with pytest.raises(SearchError, match=r"private address|cannot be found"):
            ask(server, "/a")
        other.settimeout(0.05)
        with pytest.raises(TimeoutError):
            other.accept()


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://a", "ftp://a/b"])
def test_redirects_to_other_schemes(server, location):
    server.routes["/a"] = (302, {"Location": location}, b"")
    with pytest.raises(SearchError, match="no http or https"):
        ask(server, "/a")


def test_a_private_address_must_have_been_named(server):
    with pytest.raises(SearchError, match="private address"):
        fetch_json(server.url + "/a")
    assert server.asked == []


def test_a_name_is_resolved_once(server, monkeypatch):
    """A name that is public when it is looked at and private when it is used (DNS rebinding) gains nothing."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        search_http.socket, "getaddrinfo", lambda host, port, **rest: resolve(next(answers), port, **rest)
    )
    connected = []

    def refuse():
        raise search_http.httpcore2.ConnectError("no")

    monkeypatch.setattr(
        search_http.httpcore2.SyncBackend, "connect_tcp",
        lambda self, host, *rest: connected.append(host) or refuse(),
    )  # fmt: skip
    with pytest.raises(SearchError, match="cannot be reached"):
        fetch_json(f"http://rebind.example:{server.server_port}/")
    assert connected == ["93.184.216.34"]


def test_limits(server, monkeypatch):
    monkeypatch.setattr(search_http, "LARGEST_ANSWER", 1000)
    server.routes["/large"] = (200, {}, b" " * 1001)
    with pytest.raises(SearchError, match="more than"):
        ask(server, "/large")
    server.routes["/drip"] = lambda _: (200, {}, (time.sleep(0.05) or b" " for _ in range(1000)))
    started = time.monotonic()
    with pytest.raises(SearchError, match="did not answer within"):
        ask(server, "/drip", seconds=0.5)
    assert time.monotonic() - started < 5
    server.routes["/slow"] = lambda _: time.sleep(2) or answer({})
    with pytest.raises(SearchError, match="did not answer within"):
        ask(server, "/slow", seconds=0.3)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((403, {}, b"no"), "HTTP 403"),
        ((200, {}, b"<html>"), "did not answer with JSON"),
        ((200, {}, b"[" * 100_000), "did not answer with JSON"),
        ((200, {}, b"\xff\xfe"), "did not answer with JSON"),
    ],
)
def test_answers_that_are_none(server, reply, message):
    server.routes["/a"] = reply
    with pytest.raises(SearchError, match=message) as caught:
        ask(server, "/a")
    assert "\n" not in str(caught.value)


def test_no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(search_http.socket, "getaddrinfo", refuse)
    passages, problems = search_all([open_source("wikipedia:en")], ["hill"], 3)
    assert passages == []
    assert problems == ["wikipedia:en: en.wikipedia.org cannot be found; is there a network?"]


def test_sources_take_turns_and_failures_are_lines():
    class Given:
        def __init__(self, name, texts):
            self.name, self.texts = name, texts

        def search(self, words, limit):
            if self.texts is None:
                raise SearchError("is down")
            return [Passage(self.name, text, "") for text in self.texts]

    passages, problems = search_all([Given("a", ["1", "2", "3"]), Given("b", None), Given("c", ["x", "1"])], ["w"], 3)
    assert [passage.text for passage in passages] == ["1", "x", "2"]
    assert problems == ["b: is down"]


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False), ("169.254.169.254", False),
     ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("fe80::1%eth0", False),
     ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("2606:4700::1111", True)],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


def test_addresses_beyond_ascii(server):
    server.routes["/%C3%BC"] = answer({"found": 1})
    server.routes["/moved"] = (302, {"Location": server.url + "/\xfc"}, b"")
    assert ask(server, "/\xfc") == ask(server, "/moved") == {"found": 1}
    server.routes["/away"] = (302, {"Location": "http://\xfc" + "x" * 70 + ".example/"}, b"")
    with pytest.raises(SearchError, match="no name of a server"):
        ask(server, "/away")
