"""The server, by OpenAI's own client over a real socket, and by requests that nobody should send."""

import http.client
import json
import socket
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import uvicorn
from fake_session import FakeSession
from openai import APIStatusError, OpenAI
from pocketlm.errors import InputError
from pocketlm.runtimes.chat_template import encode_chat
from pocketlm.runtimes.generate import generate
from pocketlm.runtimes.metrics import log_softmax
from pocketlm.runtimes.sampling import Sampling
from pocketlm.runtimes.serve import load_server, make_app, serve
from pocketlm.runtimes.serve_engine import StopText
from pocketlm.runtimes.serve_request import parse_chat
from test_generate import STOP, VOCABULARY, encode
from tiny import write_tokenizer
from tiny_tokenizers import chatml_tokenizer

LETTERS = [encode(letter)[0] for letter in "abcdefgh"]


class Slow(FakeSession):
    """A session that takes its time for each token."""

    def run(self, tokens):
        time.sleep(0.02)
        return super().run(tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    write_tokenizer(folder)
    return folder


def running(folder, session, token=None, waiting=16, limit_seconds=300.0):
    """A server in a thread: (base address, server)."""
    server = load_server(folder, "tiny", session, token, waiting, limit_seconds)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(server), log_level="error")
    program = uvicorn.Server(config)
    thread = threading.Thread(target=program.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", server, program, thread


@pytest.fixture
def start(folder):
    programs = []

    def begin(session, **options):
        address, server, program, thread = running(folder, session, **options)
        programs.append((program, thread))
        return address, server

    yield begin
    for program, thread in programs:
        program.should_exit = True
        thread.join(10)


def client(address, key="none"):
    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def raw(address, path, body=b"", headers=(), method="POST"):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_chat_equals_generate(start, folder):
    address, server = start(FakeSession(VOCABULARY, 400, loud=LETTERS))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}]
    tokens = encode_chat(server.files.tokenizer, server.files.template, messages)
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=7)
    pieces = list(
        generate(FakeSession(VOCABULARY, 400, loud=LETTERS), chatml_tokenizer(), tokens, sampling, 12, {STOP})
    )
    answer = client(address).chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=12, temperature=0.8, top_p=0.9, seed=7
    )
    assert answer.choices[0].message.content == "".join(piece.text for piece in pieces)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(tokens), 12)
    stream = client(address).chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=12, temperature=0.8, top_p=0.9, seed=7, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 12
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert client(address).models.list().data[0].id == "tiny"


def test_what_tools_gave_reaches_the_template(start):
    """As openai's client sends it: arguments as a text of JSON, no content beside calls."""
    address, server = start(FakeSession(VOCABULARY, 400, loud=LETTERS))
    call = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"of": [2, 2]}'}}
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    seen = parse_chat({"messages": messages}).messages
    function = {"name": "sum", "arguments": {"of": [2, 2]}}
    assert seen[1] == {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert seen[2] == {"role": "tool", "content": "4", "tool_call_id": "1"}
    tokens = encode_chat(server.files.tokenizer, server.files.template, seen)
    answer = client(address).chat.completions.create(model="tiny", messages=messages, max_completion_tokens=2)
    assert answer.usage.prompt_tokens == len(tokens)


def test_echo_scores_every_token_by_what_stands_before_it(start):
    address, _ = start(FakeSession(VOCABULARY, 100))
    prompt = encode("abcabc")
    answer = client(address).completions.create(
        model="tiny", prompt=prompt, echo=True, max_tokens=1, logprobs=2, temperature=0
    )
    session = FakeSession(VOCABULARY, 100)
    expected = []
    for before, token in pairwise(prompt):
        expected.append(float(log_softmax(session.run([before]).astype(np.float64))[token]))
    found = answer.choices[0].logprobs
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-12)
    assert len(found.tokens) == len(found.top_logprobs) == len(found.text_offset) == len(prompt) + 1
    assert found.tokens[:-1] == list("abcabc")
    last = log_softmax(session.run(prompt[-1:]).astype(np.float64))
    assert found.token_logprobs[-1] == pytest.approx(float(last.max()), abs=1e-12)
    assert answer.choices[0].text.startswith("abcabc")
    several = client(address).completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=3, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]


def test_stop_texts_and_chat_logprobs(start):
    address, _ = start(FakeSession(VOCABULARY, 400, encode("one two three")))
    answer = client(address).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}], stop=["o th", "zzz"],
        logprobs=True, top_logprobs=3, temperature=0,
    )  # fmt: skip
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one tw", "stop")
    assert all(len(entry.top_logprobs) == 3 for entry in answer.choices[0].logprobs.content)


@pytest.mark.parametrize("cut", range(1, 12))
def test_stop_text_however_it_is_cut(cut):
    text = "abcab<end>rest"
    stop = StopText(("<end>", "zz"))
    shown = "".join(stop.add(text[start : start + cut]) for start in range(0, len(text), cut) if not stop.hit)
    assert (shown, stop.hit) == ("abcab", True)
    open_end = StopText(("<end>",))
    assert open_end.add("a<en") + open_end.held == "a<en"
    assert not open_end.hit


BROKEN_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("completions", {"prompt": ""}, "prompt is empty"),
        ("completions", {"prompt": "a", "n": 2}, "n = 2 is not supported"),
        ("completions", {"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "sorcery": 1}, "sorcery is not supported"),
        ("completions", {"prompt": "a", "\ud800": 1}, "\ufffd is not supported"),
        ("completions", {"prompt": [99999]}, "outside the vocabulary"),
        ("completions", {"prompt": [-1]}, "outside the vocabulary"),
        ("completions", {"prompt": "a", "temperature": -1}, "temperature must be"),
        ("completions", {"prompt": "a", "temperature": float("nan")}, "temperature must be"),
        ("completions", {"prompt": "a", "temperature": 10**400}, "temperature is too large"),
        ("completions", {"prompt": "a", "max_tokens": -1}, "max_tokens must be"),
        ("completions", {"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}, "at most 4"),
        ("completions", {"prompt": "a" * 3000}, "context holds"),
        ("completions", {"prompt": "a" * 3000, "echo": True, "logprobs": 1}, "context holds"),
        ("completions", {"prompt": "\ud800"}, "not valid Unicode"),
        ("chat/completions", {"messages": []}, "messages must be"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' is unknown"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools"),
        ("chat/completions", {"messages": [BROKEN_CALL]}, "arguments of the tool call 'f' must be an object in JSON"),
        ("chat/completions", [], "must be a JSON object"),
    ],
)
def test_requests_that_cannot_be_answered(start, path, body, message):
    address, server = start(FakeSession(VOCABULARY, 200))
    for streamed in (False, True):
        given = body | {"stream": streamed} if isinstance(body, dict) else body
        status, answer = raw(address, f"/v1/{path}", json.dumps(given).encode())
        assert status == 400
        assert message in json.loads(answer)["error"]["message"]
    assert server.queue.waiting == 0


def test_bodies_that_are_none(start):
    address, _ = start(FakeSession(VOCABULARY, 200))
    assert raw(address, "/v1/completions", b"{")[0] == 400
    assert raw(address, "/v1/completions", b"[" * 100_000)[0] == 400
    assert raw(address, "/v1/completions", b" " * (1 << 20) + b"{}")[0] == 413
    assert raw(address, "/v1/other", b"{}")[0] == 404
    assert raw(address, "/v1/completions", method="GET")[0] == 405


def test_web_pages_cannot_ask(start):
    address, _ = start(FakeSession(VOCABULARY, 200))
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    assert raw(address, "/v1/completions", body)[0] == 200
    assert raw(address, "/v1/completions", body, {"Host": "evil.example"})[0] == 403
    assert raw(address, "/v1/completions", body, {"Origin": "https://evil.example"})[0] == 403


def test_a_token_is_needed_where_others_can_reach(start):
    address, _ = start(FakeSession(VOCABULARY, 200), token="secret")
    with pytest.raises(APIStatusError) as caught:
        client(address, "wrong").models.list()
    assert caught.value.status_code == 401
    assert client(address, "secret").models.list().data


def test_one_at_a_time_and_the_rest_wait_or_are_told(start):
    address, server = start(Slow(VOCABULARY, 2000, loud=LETTERS), waiting=1)
    results = []

    def ask():
        try:
            results.append(client(address).completions.create(model="tiny", prompt="a", max_tokens=30, temperature=0))
        except APIStatusError as error:
            results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(30)
    refused = [result for result in results if isinstance(result, APIStatusError)]
    answered = [result.choices[0].text for result in results if not isinstance(result, APIStatusError)]
    assert len(answered) == 2
    assert len(set(answered)) == 1  # nobody's tokens were mixed with another's
    assert {error.status_code for error in refused} == {429}
    assert int(refused[0].response.headers["retry-after"]) >= 1
    assert server.queue.waiting == 0


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_the_session(start, streamed):
    session = Slow(VOCABULARY, 5000, loud=LETTERS)
    address, server = start(session)
    body = json.dumps({"prompt": "a", "max_tokens": 4000, "temperature": 0, "stream": streamed}).encode()
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.request("POST", "/v1/completions", body)
    time.sleep(0.5)
    connection.sock.close()
    connection.close()
    deadline = time.monotonic() + 10
    while server.queue.waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.queue.waiting == 0
    ran = len(session.runs)
    time.sleep(0.3)
    assert len(session.runs) == ran < 1000


def test_an_answer_has_its_time(start):
    address, _ = start(Slow(VOCABULARY, 5000, loud=LETTERS), limit_seconds=0.5)
    answer = client(address).completions.create(model="tiny", prompt="a", max_tokens=4000, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert 2 < answer.usage.completion_tokens < 200


@pytest.mark.parametrize(
    ("host", "port", "message"), [("nowhere", 0, "no address"), ("127.0.0.1", None, "listened on")]
)
def test_addresses_that_cannot_be_listened_on(folder, host, port, message):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match=message):
        serve(
            folder, lambda: FakeSession(VOCABULARY, 100), "tiny", host, taken.getsockname()[1] if port is None else port
        )
