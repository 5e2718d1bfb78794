"""Tasks by name: a file, the one that ships with pocketlm, or BIG-bench's out of the Python package bigbench."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from ..export.fetch import cache_folder
from .progress import Progress, silent
from .tasks import MOST_CHOICES, Item, MultipleChoice, ShortAnswer, Task, parse_task, read_task_file
from .tokenizer import check_unicode

SHIPPED = ("general_knowledge",)
BIGBENCH = "bigbench:"
_PACKAGE = "bigbench==1.0.0"
_SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"  # of its source package
_ARCHIVE = "bigbench-1.0.0.tar.gz"
_LICENCE = "Apache-2.0"


def open_task(name: str, progress: Progress = silent) -> Task:
    """The task that ``--tasks`` names; raises InputError for none."""
    if name.startswith(BIGBENCH):
        return read_bigbench(name.removeprefix(BIGBENCH), progress)
    if name in SHIPPED and not Path(name).exists():
        content = (files(__package__) / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        return parse_task(content, name, name)
    if not Path(name).is_file():
        known = ", ".join((*SHIPPED, f"{BIGBENCH}TASK"))
        raise InputError(f"{name}: is neither a file of JSON lines nor a known task; known are: {known}")
    return read_task_file(Path(name))


def read_bigbench(name: str, progress: Progress = silent) -> Task:
    """A JSON task of BIG-bench (Srivastava et al. 2022), such as ``sports_understanding`` or ``cs_algorithms/lcs``.

    Taken from the package bigbench if it is installed. Otherwise pip fetches its source package once, 358 MB, which
    stays in pocketlm's cache. Raises InputError if there is no such task or it cannot be had.
    """
    if not re.fullmatch(r"\w+(/\w+)?", name, re.ASCII):
        raise InputError(f"{BIGBENCH}{name}: name a task of BIG-bench, such as {BIGBENCH}general_knowledge")
    installed = find_spec("bigbench")
    places = [Path(place) / "benchmark_tasks" for place in (installed and installed.submodule_search_locations) or ()]
    found = next((file for place in places if (file := place / name / "task.json").is_file()), None)
    path = found or _from_archive(name, cache_folder() / _PACKAGE, progress)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON; delete it and try again") from error
    return _parse(content, name)


def _from_archive(name: str, cache: Path, progress: Progress) -> Path:
    target = cache / "tasks" / f"{name.replace('/', '.')}.json"
    if target.is_file():
        return target
    try:
        archive = _fetch(cache, progress)
        with progress(f"Looking for {name} in bigbench"), tarfile.open(archive, "r|gz") as members:
            content, others = _find(members, name)
            if content is None:
                near = ", ".join(get_close_matches(name, others, 5, 0.4))
                raise InputError(f"{BIGBENCH}{name}: bigbench has no such task in JSON; {near or 'none'} come near")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                partial = Path(temporary) / "task.json"
                partial.write_bytes(content.read())
                partial.replace(target)
    except OSError as error:
        raise InputError(f"{cache}: cannot be written ({error.strerror}); set POCKETLM_CACHE to a folder") from error
    except tarfile.TarError as error:
        raise InputError(f"{cache / _ARCHIVE}: is damaged; delete it and try again") from error
    return target


def _find(members: tarfile.TarFile, name: str) -> tuple[IO[bytes] | None, list[str]]:
    """A task's file in the archive, or None and the names of all tasks."""
    others = []
    for member in members:
        match = re.fullmatch(r"bigbench-1\.0\.0/bigbench/benchmark_tasks/(\w+(?:/\w+)?)/task\.json", member.name)
        if match and match[1] == name:
            return members.extractfile(member), []
        if match:
            others.append(match[1])
    return None, others


def _fetch(cache: Path, progress: Progress) -> Path:
    """The source package. pip runs its setup.py to learn its name, so it must be the very archive that is expected."""
    archive = cache / _ARCHIVE
    if archive.is_file():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with progress("Fetching BIG-bench (358 MB, once)"), tempfile.TemporaryDirectory(dir=cache) as temporary:
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--dest", temporary, "--require-hashes", "--requirement", str(wanted)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        downloaded = Path(temporary) / _ARCHIVE
        if done.returncode != 0 or not downloaded.is_file():
            raise InputError(
                f"pip could not download {_PACKAGE}; check the network and pip's settings, "
                f"`python -m pip download --no-deps {_PACKAGE}` shows the reason"
            )
        downloaded.replace(archive)
    return archive


def _parse(content: Mapping[str, Any], name: str) -> Task:
    """The format is described in BIG-bench's docs/doc.md."""
    examples = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list):
        raise InputError(f"{BIGBENCH}{name}: has no examples of its own; name one of its subtasks, {name}/SUBTASK")
    prefix = content.get("task_prefix")
    items = list(_items(examples, prefix if isinstance(prefix, str) else ""))
    if not items:
        raise InputError(f"{BIGBENCH}{name}: has no example with choices or an answer in text")
    about = {"source": f"BIG-bench {name} (Srivastava et al. 2022), from {_PACKAGE}", "licence": _LICENCE}
    if len(items) < len(examples):
        about["left out"] = f"{len(examples) - len(items)} examples that no single right answer or letter fits"
    return Task(name, tuple(items), about)


def _items(examples: list[Any], prefix: str) -> Iterator[Item]:
    for example in examples:
        question = f"{prefix}{example.get('input', '')}".strip()
        scores, target = example.get("target_scores"), example.get("target")
        check_unicode(question)
        if isinstance(scores, dict):
            best = max(scores.values(), default=0)
            right = tuple(place for place, value in enumerate(scores.values()) if value == best)
            usable = 2 <= len(scores) <= MOST_CHOICES and len(right) < len(scores) and all(map(str.strip, scores))
            if question and usable:
                yield MultipleChoice(question, tuple(scores), right)
        else:
            answers = [answer for answer in (target if isinstance(target, list) else [target]) if _is_text(answer)]
            if question and answers:
                yield ShortAnswer(question, tuple(answers))


def _is_text(given: Any) -> bool:
    return isinstance(given, str) and bool(given.strip())
