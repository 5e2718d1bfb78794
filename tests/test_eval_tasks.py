"""`eval --tasks` as a user meets it: a tiny bundle beside a fake endpoint, and beside `pocketlm serve` of itself."""

import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
from fake_endpoint import fake_endpoint, said, scored
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.task_report import compare, markdown, summarise
from pocketlm.runtimes.task_run import Against, run_tasks
from pocketlm.runtimes.tasks import MultipleChoice, RunningText, ShortAnswer, Task
from test_lm_eval import questions, served

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def file(tmp_path):
    """Four questions with choices, of which the first is right, two short ones, a text."""
    items = [{"question": f"Question {index}?", "choices": ["one", "two", "three"], "answer": 0} for index in range(4)]
    items += [{"question": f"Where {index}?", "answers": ["Paris"]} for index in range(2)]
    path = tmp_path / "mine.jsonl"
    about = {"about": {"licence": "mine\x1b[2J"}}
    path.write_text("".join(json.dumps(item) + "\n" for item in [about, *items, {"text": "It is a truth."}]))
    return path


@pytest.fixture
def server():
    with fake_endpoint() as fake:
        fake.script = [knows]
        yield fake


def knows(path, body):
    """The endpoint: the first choice is the likeliest, and all is in Paris."""
    if path.endswith("/completions") and "echo" in body:
        return scored([None], *([None, -1.0 - place] for place in range(len(body["prompt"]) - 1)))
    return said("It is Paris.")


def no_scores(path, body):
    return (400, {}, {"error": {"message": "echo is not supported"}}) if "echo" in body else said("It is Paris.")


def evaluate(bundle, file, tmp_path, *more):
    return run(["eval", str(bundle), "--tasks", str(file), "--threads", "1", "--results", str(tmp_path / "r"), *more])


def test_both_sides_and_every_report(tiny_bundle, file, tmp_path, server, capsys):
    out = tmp_path / "out"
    more = ("--against", server.url, "-o", str(out), "--price-in", "2", "--price-out", "10")
    assert evaluate(tiny_bundle, file, tmp_path, *more) == 0
    shown = capsys.readouterr().out
    assert "4/4 = 100.0 % (51 to 100)" in shown
    assert "exact McNemar test p = " in shown
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    own, other = report["sides"]
    assert (own["name"], other["name"]) == ("tiny onnx", "small")
    assert other["choices"] | {"accuracy": None} == {"count": 4, "right": 4, "accuracy": None, "not_understood": 0}
    assert other["answers"]["right"] == 2
    assert other["bits_per_byte"]["mean"] == pytest.approx(1 / 0.6931471805599453 / len(" is a truth."))
    counts = [report["paired"]["choices"][key] for key in ("both", "only_first", "only_second", "neither")]
    assert counts == [own["choices"]["right"], 0, 4 - own["choices"]["right"], 0]
    # four times three choices of two tokens, one text of two, and twice 7 tokens read and 3 written
    assert other["cost"]["prompt_tokens"] == 4 * 3 * 2 + 2 + 2 * 7
    assert other["cost"]["price_of_1000_answers"] == pytest.approx((40 * 2 + 6 * 10) / 1e6 / 7 * 1000)
    assert own["cost"]["peak_memory_bytes"] > 1 << 20
    assert own["cost"]["price_of_1000_answers"] is None
    assert ElementTree.fromstring((out / "report.svg").read_text()).tag.endswith("svg")
    page = (out / "report.md").read_text()
    assert "| choices right |" in page
    assert "| price of 1,000 |  | 0.0200 |" in page


def test_a_bundle_alone(tiny_bundle, file, tmp_path, capsys):
    assert evaluate(tiny_bundle, file, tmp_path, "--limit", "3", "-o", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "mine: 3 items" in shown
    assert "Chance alone would get 33.3 % of the choices right." in shown
    assert "McNemar" not in shown
    assert "licence: mine\ufffd[2J" in shown
    assert evaluate(tiny_bundle, file, tmp_path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["paired"] == {}
    assert [len(entry["outcomes"]) for entry in report["answers"]] == [1] * 7


def test_only_what_is_missing_is_asked_again(tiny_bundle, file, tmp_path, server, capsys):
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--max-calls", "5") == 0
    shown = capsys.readouterr().out
    assert "--max-calls is used up: 3 of 7 items were asked" in shown
    assert len(server.asked) == 4  # one tells whether there are log-likelihoods; /models is a call, too
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url) == 0
    assert len(server.asked) == 4 + 1 + 4
    server.asked.clear()
    capsys.readouterr()
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--json") == 0
    assert len(server.asked) == 1
    content = json.loads(capsys.readouterr().out)
    assert all(None not in entry["outcomes"] for entry in content["answers"])
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--fresh") == 0
    assert len(server.asked) == 1 + 1 + 7


def test_a_failing_endpoint_keeps_what_was_answered(tiny_bundle, file, tmp_path, server, capsys):
    calls = []

    def ends(path, body):
        calls.append(path)
        return (401, {}, {}) if len(calls) == 4 else knows(path, body)

    server.script = [ends]
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pocketlm:")]
    assert len(lines) == 1
    assert "3 of 7 answers are kept, run the same again to go on" in lines[0]
    server.asked.clear()
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url) == 0
    assert len(server.asked) == 1 + 5


def test_a_killed_run_loses_at_most_the_answer_under_way(tiny_bundle, file, tmp_path, server):
    reached = []

    def stalls(path, body):
        reached.append(path)
        if len(reached) == 4:
            time.sleep(3)
        return knows(path, body)

    server.script = [stalls]
    command = [sys.executable, "-m", "pocketlm", "eval", str(tiny_bundle), "--tasks", str(file), "--threads", "1"]
    command += ["--results", str(tmp_path / "r"), "--against", server.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        deadline = time.monotonic() + 60
        while len(reached) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(program.pid, signal.SIGKILL)
    server.script = [knows]
    server.asked.clear()
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url) == 0
    assert len(server.asked) == 1 + 7 - 2


def test_without_log_likelihoods_both_sides_generate(tiny_bundle, file, tmp_path, server, capsys):
    server.script = [no_scores]
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["method"]["likelihood"]
    assert any("on both sides choices are read from answers" in note for note in report["notes"])
    assert [side["choices_by_length"] for side in report["sides"]] == [None, None]
    assert report["sides"][1]["choices"]["not_understood"] == 4
    assert report["sides"][1]["bits_per_byte"] is None
    assert report["sides"][0]["bits_per_byte"] is not None
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--scoring", "likelihood") == 2
    assert "gives no log-likelihoods of prompts; use --scoring generated" in capsys.readouterr().err


def test_a_refused_item_is_counted_and_left_out(tiny_bundle, file, tmp_path, server, capsys):
    def refuses(path, body):
        wanted = body["prompt"][0] if "echo" in body else ""
        return (400, {}, {"error": {"message": "content policy"}}) if "Question 1" in wanted else knows(path, body)

    server.script = [refuses]
    assert evaluate(tiny_bundle, file, tmp_path, "--against", server.url, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sides"][1]["refused"] == 1
    assert report["sides"][1]["choices"]["count"] == 3
    assert sum(report["paired"]["choices"][key] for key in ("both", "only_first", "only_second", "neither")) == 3
    assert "small: 1 refused, such as:" in report["notes"][0]
    assert report["answers"][1]["outcomes"][1] is None


def test_the_key_is_written_nowhere(tiny_bundle, file, tmp_path, server, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server.models = [f"m-{KEY}"]
    server.script = [lambda path, body: knows(path, body) if "echo" in body else said(f"Paris {KEY}")]
    more = ("--against", server.url, "--key-env", "MY_KEY", "-o", str(tmp_path / "out"))
    assert evaluate(tiny_bundle, file, tmp_path, *more) == 0
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    server.script = [(403, {}, {"error": {"message": f"no {KEY}"}})]
    assert evaluate(tiny_bundle, file, tmp_path, *more, "--fresh") == 2
    heard = capsys.readouterr()
    assert KEY not in heard.out + heard.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert not [path for path in written if KEY.encode() in path.read_bytes() or KEY in path.name]


def test_an_endpoint_with_the_same_weights_answers_the_same(tiny_bundle, tmp_path):
    items = [MultipleChoice(item["question"], tuple(item["choices"]), (item["answer"],)) for item in questions()][:8]
    task = Task("both", (*items, ShortAnswer("Where?", ("a",)), RunningText("It is a truth universally acknowledged.")))
    with served(tiny_bundle) as address:
        against = Against(address)
        found = run_tasks(tiny_bundle, task, against=against, threads=1, max_new_tokens=12, results=tmp_path)
        again = run_tasks(
            tiny_bundle, task, against=against, threads=1, max_new_tokens=12, results=tmp_path, scoring="generated"
        )
    for comparison in (found, again):
        own, other = comparison.sides
        assert len(own.outcomes) == len(other.outcomes) == len(task.items)
        for place, outcome in own.outcomes.items():
            theirs = other.outcomes[place]
            assert (theirs.right, theirs.answer, theirs.by_length) == (outcome.right, outcome.answer, outcome.by_length)
            assert (theirs.spent.prompt_tokens, theirs.spent.new_tokens) == (
                outcome.spent.prompt_tokens, outcome.spent.new_tokens
            )  # fmt: skip
    assert found.sides[0].outcomes[9].logprob == pytest.approx(found.sides[1].outcomes[9].logprob, abs=1e-3)
    paired = compare(found)
    assert paired["choices"].only_first == paired["choices"].only_second == 0
    assert paired["choices"].p_value == 1
    assert summarise(found)[1].cost.peak_memory_bytes > 1 << 20  # of the server's own process
    assert "|" not in markdown(found).splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "either --text FILE or --tasks"),
        (["--tasks", "x", "--text", "y"], "either --text FILE or --tasks"),
        (["--tasks", "absent"], "known are: general_knowledge"),
        (["--tasks", "general_knowledge", "--recipe", "int4"], "--recipe goes with --text"),
        (["--text", "x", "--against", "http://127.0.0.1"], "--against goes with --tasks"),
        (["--tasks", "general_knowledge", "--max-calls", "3"], "--max-calls goes with --against"),
        (["--tasks", "general_knowledge", "--against", "nowhere"], "takes the address of an endpoint"),
        (["--tasks", "general_knowledge", "--against", "http://127.0.0.1:1"], "cannot be reached"),
        (["--tasks", "general_knowledge", "--target", "coreml"], "coreml"),
        (["--tasks", "{long}"], "item 1 of the task takes"),
        (["--tasks", "{bad}"], "bad.jsonl, line 1: is not JSON"),
    ],
)
def test_what_cannot_be_is_one_line(tiny_bundle, tmp_path, capsys, arguments, expected):
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "word " * 300, "answers": ["x"]}))
    (tmp_path / "bad.jsonl").write_text("hello")
    places = {"long": tmp_path / "long.jsonl", "bad": tmp_path / "bad.jsonl"}
    assert run(["eval", str(tiny_bundle), *(argument.format(**places) for argument in arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
