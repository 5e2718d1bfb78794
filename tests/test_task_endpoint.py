"""Asking endpoints: a fake one on the loopback interface that is busy, slow, hostile or curious."""

import math
import time

import pytest
from fake_endpoint import fake_endpoint, said, scored
from pocketlm.errors import InputError
from pocketlm.runtimes.task_endpoint import Endpoint, find_model
from pocketlm.runtimes.task_http import Address, BudgetError, Connection, EndpointError, parse_address, read_key

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server():
    with fake_endpoint() as fake:
        yield fake


def endpoint(server, chat=True, key=None, **options):
    waits = []
    connection = Connection(parse_address(server.url), key, sleep=waits.append, **options)
    return Endpoint(connection, "small", chat), waits


def test_a_chat_answer(server):
    server.script = [said("Paris")]
    subject, _ = endpoint(server)
    found = subject.write("Where?", 9)
    assert (found.text, found.spent.prompt_tokens, found.spent.new_tokens) == ("Paris", 7, 3)
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "small", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 9,
                    "temperature": 0}  # fmt: skip
    assert "Authorization" not in server.headers[0]


def test_a_plain_answer_ends_with_its_line(server):
    server.script = [said(" Paris")]
    subject, _ = endpoint(server, chat=False)
    assert subject.write("Where?", 9).text == " Paris"
    assert server.asked[0][1]["stop"] == ["\n"]


def test_log_likelihoods_are_those_behind_the_context(server):
    server.script = [scored([None, -1.0], [None, -1.0, -0.5], [None, -1.0, -0.25, -0.125])]
    subject, _ = endpoint(server)
    found = subject.score("a b", [" c", " d e"])
    assert found.logprobs == (-0.5, -0.375)
    assert found.spent.prompt_tokens == 7
    body = server.asked[0][1]
    assert body["prompt"] == ["a b", "a b c", "a b d e"]
    assert (body["echo"], body["max_tokens"]) == (True, 1)


def test_busy_servers_are_asked_again_later_and_later(server):
    server.script = [(429, {"Retry-After": "7"}, {}), (503, {}, b"<html>"), (500, {"Retry-After": "9999"}, {}),
                     (502, {"Retry-After": "soon"}, {}), said("yes")]  # fmt: skip
    subject, waits = endpoint(server)
    found = subject.write("q", 3)
    assert (found.text, found.spent.retried) == ("yes", True)
    assert (waits[0], waits[2]) == (7, 60)
    assert 1 <= waits[1] <= 2
    assert 4 <= waits[3] <= 8
    server.script = [(529, {}, {"error": {"message": "overloaded\x1b[2J"}})]
    with pytest.raises(EndpointError, match=r"HTTP 529 \(overloaded.\[2J\)"):
        subject.write("q", 3)
    assert len(waits) == 4 + 5


def test_what_waiting_does_not_mend_is_not_repeated(server):
    server.script = [(429, {}, {"error": {"code": "insufficient_quota", "message": "no money"}})]
    subject, waits = endpoint(server)
    with pytest.raises(EndpointError, match="no money"):
        subject.write("q", 3)
    for status in (400, 401, 404, 301):
        server.script = [(status, {"Location": "http://127.0.0.1:1/"}, {})]
        with pytest.raises(EndpointError):
            subject.write("q", 3)
    assert not waits
    assert len(server.asked) == 5


def test_nobody_there_is_said_at_once_and_a_broken_connection_is_tried_again(server):
    waits = []
    gone = Connection(Address("http://127.0.0.1:1/v1", "127.0.0.1", 1, True), None, sleep=waits.append)
    with pytest.raises(EndpointError, match="cannot be reached"):
        gone.get("/models")
    assert not waits
    server.script = [(200, {"Content-Length": "5000"}, b"{"), said("whole")]
    subject, waits = endpoint(server)
    assert subject.write("q", 3).text == "whole"
    assert len(waits) == 1


def test_the_budget_counts_retries(server):
    server.script = [(503, {}, {})]
    subject, _ = endpoint(server, most_calls=3)
    with pytest.raises(BudgetError):
        subject.write("q", 3)
    assert len(server.asked) == 3
    with pytest.raises(BudgetError):
        subject.write("q", 3)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>hello</html>", "did not answer with a JSON object"),
        (b"[" * 100_000, "did not answer with a JSON object"),
        (b"[]", "did not answer with a JSON object"),
        (b"\x1f\x8b\x08\x00", "did not answer with a JSON object"),
        ({}, "one choice"),
        ({"choices": {}}, "one choice"),
        ({"choices": [{}, {}]}, "one choice"),
        ({"choices": ["x"]}, "one choice"),
        ({"choices": [{}]}, "without a text"),
        ({"choices": [{"message": {"content": 5}}]}, "without a text"),
        ([b"x" * (1 << 20)] * 20, "more than 16 MB"),
    ],
)
def test_answers_that_are_none(server, content, message):
    server.script = [(200, {}, content)]
    subject, waits = endpoint(server)
    with pytest.raises(EndpointError, match=message):
        subject.write("q", 3)
    assert not waits


@pytest.mark.parametrize("row", [[None, -1.0, float("nan")], [None, -1.0, 3.0], [None, -1.0, "x"], [None, -1.0, True],
                                 [None, -1.0, -math.inf], [None, -1.0, None]])  # fmt: skip
def test_log_probabilities_that_are_none(server, row):
    server.script = [scored([None, -1.0], row)]
    subject, _ = endpoint(server)
    with pytest.raises(EndpointError, match="log-probabilities that are none"):
        subject.score("a", [" b"])


def test_endpoints_without_log_likelihoods(server):
    subject, _ = endpoint(server)
    for answer in (said("x"), (404, {}, {}), (400, {}, {"error": "echo is not supported"}),
                   scored([], []), scored([None, -1.0], [None, -1.0]),
                   (200, {}, {"choices": [{"logprobs": {"content": []}}] * 2})):  # fmt: skip
        server.script = [answer]
        assert not subject.scores_prompts(), answer
    server.script = [scored([None, -1.0], [None, -1.0, -2.0])]
    assert subject.scores_prompts()
    server.script = [(401, {}, {})]
    with pytest.raises(EndpointError, match="refuses the key"):
        subject.scores_prompts()


def test_slow_and_dripping_answers(server):
    server.script = [(200, {}, [b" "] * 50)]
    subject, waits = endpoint(server, seconds=0.3)
    started = time.monotonic()
    with pytest.raises(EndpointError, match="did not answer within 0 s"):
        subject.write("q", 3)
    assert len(waits) == 5
    assert time.monotonic() - started < 30


def test_models_that_take_other_parameters(server):
    def picky(path, body):
        if "max_tokens" in body:
            return 400, {}, {"error": {"message": "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'"}}
        if "temperature" in body:
            return 400, {}, {"error": {"message": "'temperature' does not support 0"}}
        return said(None)

    server.script = [picky]
    subject, _ = endpoint(server)
    assert subject.write("q", 3).text == ""
    assert subject.write("q", 3).text == ""
    assert len(server.asked) == 4
    assert "not the likeliest" in subject.notes[0]


def test_the_key_goes_into_the_header_and_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    key = read_key(parse_address(server.url), "MY_KEY")
    subject, _ = endpoint(server, key=key)
    server.script = [said(f"your key is {KEY}")]
    assert subject.write("q", 3).text == "your key is [key]"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    server.script = [(401, {}, {"error": {"message": f"Incorrect API key: {KEY}"}})]
    with pytest.raises(EndpointError, match=r"Incorrect API key: \[key\]"):
        subject.write("q", 3)
    server.script = [(400, {}, f"bad {KEY}".encode())]
    with pytest.raises(EndpointError, match=r"bad \[key\]"):
        subject.write("q", 3)
    server.models = [f"model-{KEY}"]
    assert find_model(subject.connection) == "model-[key]"
    assert KEY not in repr(subject)
    placeholder, _ = endpoint(server, key="none")
    server.script = [said("none of them")]
    assert placeholder.write("q", 3).text == "none of them"


def test_which_key_is_sent_where(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER", KEY)
    monkeypatch.setenv("BROKEN", "a\nb")
    assert read_key(parse_address("https://api.openai.com/v1"), None) == KEY
    for url in ("http://127.0.0.1:8080", "https://example.org/v1", "https://api.openai.com.example.org/v1"):
        assert read_key(parse_address(url), None) is None
    for url in ("http://127.0.0.1:8080", "http://192.168.0.7/v1", "https://example.org"):
        assert read_key(parse_address(url), "OTHER") == KEY
    with pytest.raises(InputError, match="unencrypted to example"):
        read_key(parse_address("http://example.org/v1"), "OTHER")
    with pytest.raises(InputError, match="has no ABSENT"):
        read_key(parse_address("http://127.0.0.1"), "ABSENT")
    with pytest.raises(InputError, match="holds is no key"):
        read_key(parse_address("http://127.0.0.1"), "BROKEN")


BAD_ADDRESSES = (
    "", "127.0.0.1:80", "ftp://a/v1", "http://", "http://[", "http://a:99999", "http://a:0", "http://a\n/v1",
    "http://a..b", f"http://user:{KEY}@a/v1", f"http://a/v1?key={KEY}",
)  # fmt: skip


@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_addresses_that_cannot_be_asked(url):
    with pytest.raises(InputError, match="--against takes") as caught:
        parse_address(url)
    assert KEY not in str(caught.value)


def test_addresses():
    assert parse_address("http://127.0.0.1:8080").base == "http://127.0.0.1:8080/v1"
    assert parse_address("https://example.org/api/v3/").base == "https://example.org/api/v3"
    assert [parse_address(f"http://{host}/").local for host in ("localhost", "[::1]", "10.0.0.1")] == [
        True,
        True,
        False,
    ]


def test_the_model_must_be_known(server):
    subject, _ = endpoint(server)
    assert find_model(subject.connection) == "small"
    server.models = ["a", "b"]
    with pytest.raises(EndpointError, match="--against-model; it lists a, b"):
        find_model(subject.connection)
    server.models = []
    with pytest.raises(EndpointError, match="it lists none"):
        find_model(subject.connection)
