"""lm-eval, unchanged and offline, on `pocketlm serve`: it must find what our own scoring finds."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.task_artifact import Artifact
from pocketlm.runtimes.task_run import run_tasks
from pocketlm.runtimes.task_scoring import question_text
from pocketlm.runtimes.tasks import read_task_file
from pocketlm.runtimes.tokenizer import load_tokenizer
from tiny import TEXT

TASK = """
task: ours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def questions():
    """Choices of one token and of several, some the beginning of another, and characters of several bytes."""
    words = TEXT.split()
    for index in range(24):
        longer = f"{words[index]} {words[index + 9]}"
        choices = [words[index], " ".join(words[index + 5 : index + 7]), longer, f"é{index}"]
        question = " ".join(words[index : index + 3 + index % 9]) + "?"
        yield {"question": question, "choices": choices, "answer": index % 4}


@contextmanager
def served(bundle, name="tiny"):
    """`pocketlm serve` as a program of its own; its address."""
    command = [sys.executable, "-m", "pocketlm", "serve", str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield re.search(r"http://\S+/v1", program.stderr.readline())[0]
        finally:
            program.terminate()


def test_the_same_accuracy_and_likelihoods(tiny_bundle, tmp_path):
    data = tmp_path / "task.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in questions()))
    (tmp_path / "ours.yaml").write_text(TASK.format(data=data))
    with served(tiny_bundle) as address:
        model = f"model=tiny,base_url={address}/completions,tokenizer={tiny_bundle},tokenizer_backend=huggingface"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model]
        command += ["--tasks", "ours", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [*command, "--log_samples"], capture_output=True, text=True, env=os.environ | offline, timeout=240
        )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())["results"]["ours"]["acc,none"]
    samples = [json.loads(line) for line in next((tmp_path / "out").rglob("samples_*.jsonl")).open()]
    logprobs = {sample["doc"]["question"]: [float(entry[0][0]) for entry in sample["resps"]] for sample in samples}
    task = read_task_file(data)
    found = run_tasks(tiny_bundle, task, threads=1, results=tmp_path / "results").sides[0].outcomes
    artifact = Artifact(OnnxSession(tiny_bundle / "onnx", 1), load_tokenizer(tiny_bundle), None, frozenset())
    for place, item in enumerate(task.items):
        ours = artifact.score(question_text(item.question), [f" {choice}" for choice in item.choices]).logprobs
        assert logprobs[item.question] == pytest.approx(ours, abs=1e-3)
        assert found[place].answer == item.choices[ours.index(max(ours))]
    assert len(logprobs) == len(task.items)
    assert theirs == pytest.approx(sum(outcome.right for outcome in found.values()) / len(found))
    assert 0 < theirs < 1
