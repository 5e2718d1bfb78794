"""Tasks: what files may hold, how answers are judged, and the statistics, against scipy."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
from fake_session import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.runtimes.metrics import log_softmax
from pocketlm.runtimes.task_artifact import Artifact
from pocketlm.runtimes.task_meters import EnergyMeter, energy_counters, listener_peak_bytes, own_peak_bytes
from pocketlm.runtimes.task_results import ResultsFile
from pocketlm.runtimes.task_scoring import (
    Method,
    Outcome,
    Scores,
    Spent,
    Written,
    ask,
    bits_per_byte,
    holds,
    read_choice,
    shuffled,
    split_text,
)
from pocketlm.runtimes.task_sources import open_task, read_bigbench
from pocketlm.runtimes.task_statistics import mcnemar, paired, wilson
from pocketlm.runtimes.tasks import (
    MultipleChoice,
    RunningText,
    ShortAnswer,
    digest,
    limited,
    parse_item,
    parse_task,
    read_task_file,
)
from scipy.stats import binomtest
from test_generate import STOP, VOCABULARY, encode
from tiny_tokenizers import chatml_tokenizer

SPENT = Spent(0.1, 10, 2)
HORSE = MultipleChoice("How many legs has a horse?", ("two", "four", "six"), (1,))


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_scipys(pair):
    right, count = pair
    found, expected = wilson(right, count), binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_pairs_are_counted():
    found = paired([(True, True)] * 3 + [(True, False)] * 8 + [(False, True)] + [(False, False)] * 2)
    assert (found.both, found.only_first, found.only_second, found.neither) == (3, 8, 1, 2)
    assert found.p_value == pytest.approx(binomtest(1, 9).pvalue)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: is no JSON object"),
        ("[" * 100_000, "line 2: is not JSON"),
        ("{}", "its keys are none"),
        ('{"question": "q"}', "its keys are question"),
        ('{"question": "q", "answers": []}', "answers must be a list of texts"),
        ('{"question": " ", "answers": ["a"]}', "question must be a text"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "2 to 26 different"),
        ('{"question": "q", "choices": ["a", "a"], "answer": 0}', "2 to 26 different"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "answer must be one of the choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "answer must be one of the choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": []}', "answer must name a choice"),
        ('{"question": "\\ud800", "answers": ["a"]}', "not valid Unicode"),
        ('{"text": "x"}', "more than one character"),
        ('{"about": {"licence": 1}}', "about"),
    ],
)
def test_lines_that_are_no_items(line, message):
    with pytest.raises(InputError, match=message):
        parse_task('{"text": "one two"}\n' + line, "t", "t.jsonl")


def test_a_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "one two"}\r\n')
    assert read_task_file(path).items == (RunningText("one two"),)


def test_a_file_of_all_kinds():
    content = [
        {"about": {"licence": "CC0"}},
        {"question": "q", "choices": ["a", "b"], "answer": "b", "id": 7},
        {"question": "q", "choices": ["a", "b", "c"], "answer": [2, "a"]},
        {"question": "q\u2028r", "answers": ["x"]},
        {"text": "one two"},
    ]
    task = parse_task("\n".join(json.dumps(entry, ensure_ascii=False) for entry in content) + "\n", "t", "t")
    assert task.about == {"licence": "CC0"}
    assert task.items == (
        MultipleChoice("q", ("a", "b"), (1,)),
        MultipleChoice("q", ("a", "b", "c"), (0, 2)),
        ShortAnswer("q\u2028r", ("x",)),
        RunningText("one two"),
    )
    assert len({digest(item) for item in task.items}) == 4
    assert limited(task, 2) == limited(task, 2)
    assert set(limited(task, 2).items) < set(task.items)
    with pytest.raises(InputError, match="holds no question"):
        parse_task("\n", "t", "t")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1),
        ("(b) four", 1),
        ("B. four", 1),
        ("**B**", 1),
        ("B - four", 1),
        ("B\n\nHorses have four legs.", 1),
        ("The answer is B.", 1),
        ("The correct answer is C. six", 2),
        ("A horse has four legs.", 1),
        ("Four!", 1),
        ("It has two or four legs.", None),
        ("I do not know.", None),
        ("Z.", None),
        ("", None),
        ("fourteen", None),
    ],
)
def test_choices_read_from_answers(text, place):
    assert read_choice(text, HORSE.choices) == place


def test_the_longer_choice_is_meant():
    assert read_choice("It is New York.", ("York", "New York")) == 1
    assert read_choice("-3", ("3", "-3")) == 1
    assert read_choice("−3", ("3", "-3")) == 1


def test_answers_that_hold_the_reference():
    assert holds("It was the Normans, of course.", ["normans"])
    assert holds("in 1,760 yards", ["1,760"])
    assert not holds("Parisian", ["Paris"])
    assert not holds("", ["Paris"])
    assert holds("the the", ["The The"])


@given(st.text(min_size=2).filter(lambda text: len(text.strip()) > 1))
def test_text_is_split_without_loss(text):
    first, rest = split_text(text)
    assert first + rest == text.strip()
    assert first
    assert rest


class Says:
    """A subject that answers what it is told, and keeps what it was asked."""

    def __init__(self, text="", logprobs=()):
        self.text, self.logprobs, self.asked = text, logprobs, []

    def score(self, context, continuations):
        self.asked.append((context, tuple(continuations)))
        return Scores(tuple(self.logprobs), SPENT)

    def write(self, prompt, limit):
        self.asked.append(prompt)
        return Written(self.text, SPENT)


def test_choices_by_likelihood_and_by_length():
    item = MultipleChoice("q", ("no", "certainly not"), (1,))
    found = ask(Says(logprobs=(-2.0, -3.0)), item, Method(True, True, 8))
    assert (found.right, found.by_length, found.answer) == (False, True, "no")


def test_lettered_choices_are_shuffled_and_read_back():
    first = [shuffled(MultipleChoice(f"q{index}", ("a1", "b2", "c3", "d4"), (0,))).right[0] for index in range(400)]
    assert all(70 < first.count(place) < 130 for place in range(4))
    again = shuffled(HORSE)
    assert again == shuffled(HORSE)
    assert [again.choices[place] for place in again.right] == ["four"]
    letter = "ABC"[again.right[0]]
    subject = Says(f"{letter}.")
    assert ask(subject, HORSE, Method(False, True, 8)).right
    assert f"{letter}. four" in subject.asked[0]
    unclear = ask(Says("hm"), HORSE, Method(False, True, 8))
    assert (unclear.right, unclear.understood) == (False, False)


def test_thoughts_are_no_answer():
    assert not ask(Says("<think>Paris?</think>London"), ShortAnswer("q", ("Paris",)), Method(True, True, 8)).right
    assert ask(Says("<think>\n\n</think>\nParis"), ShortAnswer("q", ("Paris",)), Method(True, True, 8)).right


def test_bits_per_byte_of_running_text():
    found = ask(Says(logprobs=(-8 * math.log(2),)), RunningText("one two"), Method(True, True, 8))
    assert found.right is None
    assert bits_per_byte(found) == pytest.approx(8 / len(" two"))


def artifact(session, chat=True):
    from pocketlm.runtimes.chat_template import ChatTemplate
    from tiny import CHAT_TEMPLATE

    template = ChatTemplate(CHAT_TEMPLATE, {}) if chat else None
    return Artifact(session, chatml_tokenizer(), template, frozenset((STOP,)))


def test_an_artifact_scores_what_follows_the_context():
    continuations = [" four", " four legs", " zebra <|im_end|>", "é"]
    found = artifact(FakeSession(VOCABULARY, 200)).score("How many?", continuations)
    for continuation, logprob in zip(continuations, found.logprobs, strict=True):
        whole = chatml_tokenizer().encode("How many?" + continuation, special=False)
        session, start = FakeSession(VOCABULARY, 200), len(encode("How many?"))
        rows = [log_softmax(session.run([token]).astype(np.float64)) for token in whole]
        expected = sum(rows[place - 1][whole[place]] for place in range(start, len(whole)))
        assert logprob == pytest.approx(float(expected), abs=1e-9)
    wholes = [len(chatml_tokenizer().encode("How many?" + text, special=False)) for text in continuations]
    assert found.spent.prompt_tokens == sum(wholes)


def test_plain_text_answers_end_with_their_line():
    session = FakeSession(VOCABULARY, 200, [*encode("red\nblue"), STOP])
    found = artifact(session, chat=False).write("Question: a colour?\nAnswer:", 20)
    assert found.text == "red"
    whole = artifact(FakeSession(VOCABULARY, 200, [*encode("red\nblue"), STOP])).write("a colour?", 20)
    assert whole.text == "red\nblue"
    assert whole.spent.new_tokens == len(encode("red\nblue")) + 1


def test_what_does_not_fit_is_named_before_anything_runs():
    subject = artifact(FakeSession(VOCABULARY, 40))
    subject.check_room([(1, "short", " text"), (2, "short", "")], 5)
    with pytest.raises(InputError, match=r"item 7 of the task takes \d+ tokens and the context holds 40"):
        subject.check_room([(7, "long " * 40, "")], 5)
    with pytest.raises(InputError, match="item 8 of the task takes"):
        subject.check_room([(8, "x", " long" * 40)], 5)


def test_results_survive_a_kill_and_settings_do_not_mix(tmp_path):
    first = ResultsFile(tmp_path, "my/model", {"target": "onnx"})
    outcome = Outcome(True, SPENT, "four", by_length=False)
    from pocketlm.runtimes.task_meters import Measured

    first.add("one", outcome, Measured(1.5, 1000))
    with pytest.raises(InputError, match="another run is writing"):
        ResultsFile(tmp_path, "my/model", {"target": "onnx"})
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"item": "two", "outc')  # killed in the middle
    again = ResultsFile(tmp_path, "my/model", {"target": "onnx"})
    assert again.known == {"one": (outcome, Measured(1.5, 1000))}
    again.add("two", outcome, Measured())
    again.close()
    last = ResultsFile(tmp_path, "my/model", {"target": "onnx"})
    assert set(last.known) == {"one", "two"}
    last.close()
    other = ResultsFile(tmp_path, "my/model", {"target": "coreml"})
    assert not other.known
    other.close()
    fresh = ResultsFile(tmp_path, "my/model", {"target": "onnx"}, fresh=True)
    assert not fresh.known
    fresh.close()
    first.path.write_bytes(b"{}\n[]\n")
    with pytest.raises(InputError, match="line 2: is damaged"):
        ResultsFile(tmp_path, "my/model", {"target": "onnx"})


def domain(root, name, label, joules, limit=1000):
    folder = root / name
    folder.mkdir()
    for file, content in (("name", label), ("energy_uj", joules), ("max_energy_range_uj", limit)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


def test_energy_of_packages_alone_and_over_the_end_of_a_counter(tmp_path):
    first = domain(tmp_path, "intel-rapl:0", "package-0", 900)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 10)
    domain(tmp_path, "intel-rapl:0:0", "core", 1)
    domain(tmp_path, "intel-rapl:2", "psys", 1)
    (tmp_path / "intel-rapl").mkdir()
    meter = EnergyMeter(energy_counters(tmp_path))
    before = meter.read()
    assert before == (900, 10)
    first.write_text("100")  # began anew at 1000
    second.write_text("60")
    assert meter.joules_since(before) == pytest.approx((200 + 50) / 1e6)
    second.unlink()
    assert meter.joules_since(before) is None


def test_energy_where_there_is_none_is_none(tmp_path):
    assert energy_counters(tmp_path / "absent") == ()
    meter = EnergyMeter(())
    assert meter.read() is None
    assert meter.joules_since(meter.read()) is None


def test_memory_of_the_process_behind_a_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        peak = listener_peak_bytes(listening.getsockname()[1])
        assert peak is not None
        assert abs(peak - own_peak_bytes()) < 0.02 * own_peak_bytes()
        port = listening.getsockname()[1]
    assert listener_peak_bytes(port) is None


def test_the_shipped_task():
    task = open_task("general_knowledge")
    assert len(task.items) == 70
    assert task.about["licence"] == "Apache-2.0"
    assert "canary" in task.about
    with pytest.raises(InputError, match="known are: general_knowledge, bigbench:TASK"):
        open_task("absent")


def test_bigbench_tasks_of_an_installed_package(tmp_path, monkeypatch):
    folder = tmp_path / "bigbench" / "benchmark_tasks" / "colours" / "sub"
    folder.mkdir(parents=True)
    (tmp_path / "bigbench" / "__init__.py").write_text("raise SystemExit('code of a package ran')")
    examples = [
        {"input": "Snow is", "target_scores": {"white": 1, "black": 0}},
        {"input": "All are", "target_scores": {"a": 1, "b": 1}},
        {"input": "Grass is", "target": ["green", ""]},
        {"input": "Coal is", "target": "black"},
        {"input": "", "target": "x"},
    ]
    (folder / "task.json").write_text(json.dumps({"task_prefix": "Say: ", "examples": examples}))
    (folder.parent / "task.json").write_text(json.dumps({"name": "colours"}))
    monkeypatch.syspath_prepend(tmp_path)
    task = read_bigbench("colours/sub")
    assert task.items == (
        MultipleChoice("Say: Snow is", ("white", "black"), (0,)),
        ShortAnswer("Say: Grass is", ("green",)),
        ShortAnswer("Say: Coal is", ("black",)),
        ShortAnswer("Say:", ("x",)),
    )
    assert "1 examples" in task.about["left out"]
    with pytest.raises(InputError, match="name one of its subtasks"):
        read_bigbench("colours")
    with pytest.raises(InputError, match="name a task of BIG-bench"):
        read_bigbench("../../etc")


KEYS = st.sampled_from(["question", "choices", "answer", "answers", "text"])
JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@given(JSON)
def test_no_entry_breaks_the_parser(entry):
    with suppress(InputError):
        parse_item(entry if isinstance(entry, dict) else {"text": entry})
