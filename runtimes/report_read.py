"""What a report is made of: a bundle, and files that `eval`, `bench` and phones wrote. All of it is checked here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, Manifest, changed_files, read_manifest
from ..export.config import ModelConfig, parse_config
from ..quantize.recipe import Format, Recipe
from .certificate import Certificate, certificate_from_json
from .device_results import DeviceResults, read_results
from .evaluate import Candidate, Evaluation
from .quality import Interval, Quality
from .report_peers import Peers, is_peers, read_peers
from .report_plan import Plan, read_plan

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class TokenizerFacts:
    """What a bundle's tokenizer.json says of itself: the kind of its model, and how many entries it has."""

    kind: str
    entries: int


@dataclass(frozen=True)
class Timings:
    """What `pocketlm bench --json` printed: ``settings`` in words, and its figures by target."""

    settings: str
    targets: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report tells. Files are known by their names alone: a path says nothing to others.

    manifest_sha256  of pocketlm.json, and so of everything that it lists
    certificate      by target; without those that were never verified
    changed          files that are missing, or not those that the manifest lists
    recipe           None if the manifest's is not one that this pocketlm can write down
    evaluations, peers, plans, timings, devices  what was given, by file name
    """

    manifest: Manifest
    manifest_sha256: str
    config: ModelConfig
    certificate: Certificate
    changed: tuple[str, ...]
    recipe: Recipe | None
    tokenizer: TokenizerFacts | None
    evaluations: Mapping[str, Evaluation]
    peers: Mapping[str, Peers]
    plans: Mapping[str, Plan]
    timings: Mapping[str, Timings]
    devices: Mapping[str, DeviceResults]


def read_report_data(
    bundle: Path, evaluations: Sequence[Path], benches: Sequence[Path], plans: Sequence[Path]
) -> ReportData:
    """Read a bundle and the files of measurements; its artifacts are hashed, but not run.

    Raises InputError for whatever is damaged or something else than it was given for.
    """
    manifest = read_manifest(bundle)
    where = bundle / MANIFEST_FILE
    certificate = _checked(where, "export the model again", lambda: _certificate(manifest))
    found: dict[str, Evaluation | Peers] = {name: _read_evaluation(path) for name, path in _named(evaluations)}
    timings: dict[str, Timings] = {}
    devices: dict[str, DeviceResults] = {}
    for name, path in _named(benches):
        content = _json(path, "give what `pocketlm bench --json` printed, or an app wrote")
        _checked(path, "measure again", partial(_sort_bench, name, content, timings, devices))
    return ReportData(
        manifest=manifest,
        manifest_sha256=hashlib.sha256(where.read_bytes()).hexdigest(),
        config=_checked(where, "export the model again", lambda: parse_config(manifest.config, manifest.context)),
        certificate=certificate,
        changed=tuple(changed_files(bundle, manifest)),
        recipe=_recipe(manifest.recipe),
        tokenizer=_tokenizer(bundle),
        evaluations={name: each for name, each in found.items() if isinstance(each, Evaluation)},
        peers={name: each for name, each in found.items() if isinstance(each, Peers)},
        plans={name: _read_plan(path) for name, path in _named(plans)},
        timings=timings,
        devices=devices,
    )


def _named(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Each file with its name, which gets a number where several are called the same."""
    names = [path.name for path in paths]
    return [
        (name if names.count(name) == 1 else f"{name} ({names[:index].count(name) + 1})", paths[index])
        for index, name in enumerate(names)
    ]


def _checked(path: Path, remedy: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); {remedy}") from error


def _json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); {remedy}") from error


def _certificate(manifest: Manifest) -> Certificate:
    """The manifest's certificate, when what else a report shows of the manifest is sound too."""
    _text(manifest.name, "name")
    _text(manifest.pocketlm, "pocketlm")
    if manifest.licence is not None:
        _text(manifest.licence, "licence")
    for note in manifest.notes:
        _text(note, "a note")
    for name, entry in {**manifest.source, **manifest.files}.items():
        _text(entry.sha256, f"sha256 of {name}")
        if not isinstance(entry.size_bytes, int) or isinstance(entry.size_bytes, bool):
            raise TypeError(f"size of {name} is {entry.size_bytes!r}")
        if not 0 <= entry.size_bytes < 1 << 63:
            raise TypeError(f"size of {name} is {entry.size_bytes!r}")
    for name, prints in manifest.weights.items():
        _text(prints["format"], f"format of {name}")
    for name, error in manifest.quantization.items():
        _number(error, f"error of {name}")
    return certificate_from_json(manifest.certificate)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}")
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value) or value < 0:
        raise TypeError(f"{name} is {value!r}")
    return float(value)


def _recipe(content: Mapping[str, Any]) -> Recipe | None:
    try:
        formats = {pattern: Format(**each) for pattern, each in content["overrides"].items()}
        linear, embedding = Format(**content["linear"]), Format(**content["embedding"])
        recipe = Recipe(**{**content, "linear": linear, "embedding": embedding, "overrides": formats})
        for name, limit in recipe.thresholds.items():
            _number(limit, name)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return None
    kinds = [each.kind for each in (linear, embedding, *formats.values())]
    return recipe if all(isinstance(text, str) for text in (recipe.name, recipe.method, *kinds)) else None


def _tokenizer(bundle: Path) -> TokenizerFacts | None:
    try:
        content = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
        model = content["model"]
        known = set(model["vocab"] if isinstance(model["vocab"], dict) else (entry[0] for entry in model["vocab"]))
        added = {entry["content"] for entry in content.get("added_tokens") or []}
        return TokenizerFacts(_text(model["type"], "type"), len(known | added))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _sort_bench(
    name: str, content: Mapping[str, Any], timings: dict[str, Timings], devices: dict[str, DeviceResults]
) -> None:
    """Put into ``timings`` and ``devices`` what a file holds: a computer's figures, phones', or both."""
    if content.get("kind") == "device":
        devices[name] = _device(content, name)
        return
    phones = content.get("devices", [])
    for index, phone in enumerate(phones):
        devices[f"{name}, {index + 1}"] = _device(phone, name)
    if "targets" in content or not phones:
        timings[name] = _timings(content)


def _device(content: Any, name: str) -> DeviceResults:
    """A phone's results whose figures are figures."""
    found = read_results(json.dumps(content), name)
    for replay in found.verify.values():
        _number(replay["tolerance_kl"], "tolerance_kl")
        if "kl" in replay:
            _number(replay["kl"], "kl")
    if found.error is not None:
        _text(found.error, "error")
    if found.bench is not None:
        _check_figures(found.bench["targets"])
    return found


FIGURES = (
    "prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds", "first_load_seconds",
    "later_load_seconds", "peak_memory_bytes",
)  # fmt: skip


def _timings(content: Mapping[str, Any]) -> Timings:
    counts = [_number(content[key], key) for key in ("prompt_tokens", "new_tokens", "threads")]
    for target in content["targets"].values():
        _text(target["evaluated_by"], "evaluated_by")
    _check_figures(content["targets"])
    return Timings("{:.0f} prompt tokens, {:.0f} new ones, {:.0f} threads".format(*counts), content["targets"])


def _check_figures(targets: Mapping[str, Mapping[str, Any]]) -> None:
    for target in targets.values():
        for key in FIGURES:
            _number(target[key], key)
        for length in target.get("lengths", {}).values():
            _number(length["decode_tokens_per_second"], "decode_tokens_per_second")


def _read_evaluation(path: Path) -> Evaluation | Peers:
    remedy = "give what `pocketlm eval --json` printed"
    content = _json(path, remedy)
    return _checked(path, remedy, lambda: read_peers(content) if is_peers(content) else _evaluation(content))


def _read_plan(path: Path) -> Plan:
    remedy = "give what `pocketlm plan --json` printed"
    content = _json(path, remedy)
    return _checked(path, remedy, lambda: read_plan(content))


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
    candidates = {}
    for name, found in content["candidates"].items():
        layers = found.get("layer_errors")
        if layers is not None:
            layers = {layer: _number(error, layer) for layer, error in layers.items()}
        size = int(_number(found["size_bytes"], "size_bytes"))
        candidates[_text(name, "a name")] = Candidate(_quality(found["quality"]), size, layers)
    source = None if content["source"] is None else _quality(content["source"])
    tokens, sequences = (int(_number(content[key], key)) for key in ("tokens", "sequences"))
    return Evaluation(tokens, sequences, source, candidates)


def _quality(content: Mapping[str, Any]) -> Quality:
    optional = {key: content.get(key) for key in ("kl", "top1", "perplexity_ratio")}
    return Quality(
        _interval(content["perplexity"]),
        **{key: None if value is None else _interval(value) for key, value in optional.items()},
    )


def _interval(content: Mapping[str, Any]) -> Interval:
    """The ends of an interval may be infinite: those of a single sequence are."""
    found = Interval(**content)
    for value in (found.mean, found.low, found.high):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or float(value) != value:
            raise TypeError(f"{value!r} is no number")
    return found
