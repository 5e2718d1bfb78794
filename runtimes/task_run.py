"""`pocketlm eval --tasks`: the same questions to a bundle's artifact and to an endpoint, scored the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, read_manifest
from .chat import load_stop_tokens
from .chat_template import load_chat_template
from .progress import Progress, silent
from .targets import get_target
from .task_artifact import Artifact
from .task_endpoint import Endpoint, find_model
from .task_http import BudgetError, Connection, RefusedError, parse_address, read_key
from .task_meters import EnergyMeter, Measured, energy_counters, listener_peak_bytes, own_peak_bytes
from .task_results import ResultsFile, default_folder
from .task_scoring import Method, Outcome, Subject, ask, prompts
from .tasks import Item, MultipleChoice, RunningText, Task, digest
from .tokenizer import load_tokenizer
from .verify import check_small_files, check_targets

SCORINGS = ("auto", "likelihood", "generated")
DEFAULT_NEW_TOKENS = 48


@dataclass(frozen=True)
class Against:
    """The endpoint to compare with.

    url         of an OpenAI-compatible endpoint
    model       its name there; None is the only one that it lists
    key_env     name of the environment's variable that holds its key; see ``read_key``
    most_calls  requests that may be sent to it in this run, retries included
    seconds     that one answer may take
    price_in    of a million tokens read, price_out of a million tokens written; in any currency
    """

    url: str
    model: str | None = None
    key_env: str | None = None
    most_calls: int | None = None
    seconds: float = 120.0
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True)
class Side:
    """What one side answered: outcomes by the item's place in the task; ``refused`` counts items without one."""

    name: str
    outcomes: Mapping[int, Outcome]
    measured: Mapping[int, Measured]
    refused: int = 0
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A task, how it was asked, and one or two sides; the artifact comes first. ``notes`` must be shown."""

    task: Task
    method: Method
    sides: tuple[Side, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Asked:
    """A side while it is being asked."""

    name: str
    subject: Subject
    results: ResultsFile
    port: int | None = None  # of a server on this machine
    remote: bool = False  # its energy is not this machine's
    scores: bool = True  # gives log-likelihoods
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def can_answer(self, item: Item) -> bool:
        return self.scores or not isinstance(item, RunningText)

    def answer(self, place: int, item: Item, method: Method, meter: EnergyMeter) -> None:
        """Take what is in the results file, or ask and add it there."""
        known = self.results.known.get(digest(item))
        if known is None:
            known = self._ask(item, method, meter)
            self.results.add(digest(item), *known)
        self.outcomes[place], self.measured[place] = known

    def _ask(self, item: Item, method: Method, meter: EnergyMeter) -> tuple[Outcome, Measured]:
        before = None if self.remote else meter.read()
        outcome = ask(self.subject, item, method)
        joules = None if outcome.spent.retried else meter.joules_since(before)
        if self.remote:
            return outcome, Measured()
        peak = own_peak_bytes() if self.port is None else listener_peak_bytes(self.port)
        return outcome, Measured(joules, peak)


def run_tasks(
    bundle: Path,
    task: Task,
    *,
    target: str | None = None,
    threads: int = 2,
    against: Against | None = None,
    scoring: str = "auto",
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    results: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Ask everything that is not in the results files yet.

    scoring  of choices: "likelihood", "generated", or "auto", which is by log-likelihood unless the endpoint gives none
    results  folder of results files; None is in pocketlm's cache
    fresh    forget what is there

    Raises InputError if the bundle, the task or the endpoint cannot be used; what was answered is kept.
    """
    manifest = read_manifest(bundle)
    name = check_targets(bundle, manifest, [target] if target else None)[0]
    check_small_files(bundle, manifest)
    with ExitStack() as stack:
        connection = None if against is None else _connect(against, stack)
        artifact = _load(bundle, name, threads)
        chat = artifact.template is not None
        endpoint = None
        if connection is not None and against is not None:
            endpoint = Endpoint(connection, against.model or find_model(connection), chat)
        scores = _gives_scores(task, endpoint, scoring)
        method = Method(scoring != "generated" and scores, chat, max_new_tokens)
        artifact.check_room(_asked_texts(task, method), max_new_tokens)

        def results_of(side: str, about: Mapping[str, Any]) -> ResultsFile:
            folder = default_folder() if results is None else results
            file = ResultsFile(folder, side, {"task": task.name, **asdict(method), **about}, fresh=fresh)
            stack.callback(file.close)
            return file

        side = f"{bundle.resolve().name} {name}"
        sides = [_Asked(side, artifact, results_of(side, _identity(bundle, name, threads)))]
        if endpoint is not None:
            about = {"endpoint": endpoint.connection.address.base, "model": endpoint.model}
            sides.append(_other_side(endpoint, results_of(endpoint.model, about), scores))
        notes = _ask_all(sides, task, method, progress)
    ran = f"{side}: by {get_target(name).evaluated_by()}, {threads} thread{'s' if threads > 1 else ''}"
    return _comparison(task, method, sides, against, [*notes, *_notes(task, scoring, endpoint, scores), ran])


def _connect(against: Against, stack: ExitStack) -> Connection:
    address = parse_address(against.url)
    connection = Connection(address, read_key(address, against.key_env), against.most_calls, against.seconds)
    stack.callback(connection.close)
    return connection


def _load(bundle: Path, name: str, threads: int) -> Artifact:
    template = load_chat_template(bundle) if (bundle / "chat_template.jinja").is_file() else None
    session = get_target(name).open_session(bundle / name, threads)
    return Artifact(session, load_tokenizer(bundle), template, load_stop_tokens(bundle))


def _identity(bundle: Path, target: str, threads: int) -> dict[str, Any]:
    """What a bundle's answers and their times depend on; its manifest has the hashes of all its files."""
    manifest = hashlib.sha256((bundle / MANIFEST_FILE).read_bytes()).hexdigest()
    return {"bundle": manifest, "target": target, "by": get_target(target).evaluated_by(), "threads": threads}


def _other_side(endpoint: Endpoint, results: ResultsFile, scores: bool) -> _Asked:
    address, model = endpoint.connection.address, endpoint.model
    name = Path(model).name if model.startswith("/") else model  # llama.cpp names a model by its file
    return _Asked(name, endpoint, results, address.port if address.local else None, not address.local, scores)


def _gives_scores(task: Task, endpoint: Endpoint | None, scoring: str) -> bool:
    """Whether both sides give log-likelihoods. The endpoint is asked only if the task needs them."""
    kinds = {type(item) for item in task.items}
    needed = RunningText in kinds or (MultipleChoice in kinds and scoring != "generated")
    if endpoint is None or not needed:
        return True
    scores = endpoint.scores_prompts()
    if scoring == "likelihood" and not scores:
        raise InputError(
            f"{endpoint.connection.address.base} gives no log-likelihoods of prompts; use --scoring generated"
        )
    return scores


def _asked_texts(task: Task, method: Method) -> list[tuple[int, str, str]]:
    return [
        (number, prompt, continuation)
        for number, item in enumerate(task.items, 1)
        for prompt, continuation in prompts(item, method)
    ]


def _ask_all(sides: Sequence[_Asked], task: Task, method: Method, progress: Progress) -> list[str]:
    """Item by item, side after side: both see the same load of the machine. The notes to be shown."""
    meter = EnergyMeter(energy_counters())
    with progress(f"Asking {len(task.items)} questions of {task.name}", len(task.items) * len(sides)) as step:
        for place, item in enumerate(task.items):
            for side in sides:
                try:
                    if side.can_answer(item):
                        side.answer(place, item, method, meter)
                except RefusedError as error:
                    if not side.outcomes:
                        raise  # it will not take the next one either
                    side.refused.append(str(error))
                except BudgetError:
                    if not side.outcomes:
                        raise
                    return [
                        f"--max-calls is used up: {place} of {len(task.items)} items were asked; "
                        "run the same again to go on"
                    ]
                except InputError as error:
                    kept = max(len(side.outcomes) for side in sides)
                    hint = f"; {kept} of {len(task.items)} answers are kept, run the same again to go on"
                    raise InputError(f"{error}{hint if kept else ''}") from error
                step()
    return [f"{side.name}: {len(side.refused)} refused, such as: {side.refused[0]}" for side in sides if side.refused]


def _notes(task: Task, scoring: str, endpoint: Endpoint | None, scores: bool) -> list[str]:
    if endpoint is None:
        return []
    notes = list(endpoint.notes)
    kinds = {type(item) for item in task.items}
    if not scores and MultipleChoice in kinds and scoring == "auto":
        notes.append("the endpoint gives no log-likelihoods of prompts: on both sides choices are read from answers")
    if not scores and RunningText in kinds:
        notes.append("the endpoint gives no log-likelihoods of prompts: it was not asked about running text")
    return notes


def _comparison(
    task: Task, method: Method, asked: Sequence[_Asked], against: Against | None, notes: Sequence[str]
) -> Comparison:
    sides = [
        Side(
            side.name,
            side.outcomes,
            side.measured,
            len(side.refused),
            against.price_in if place and against else None,
            against.price_out if place and against else None,
        )
        for place, side in enumerate(asked)
    ]
    return Comparison(task, method, tuple(sides), tuple(notes))
