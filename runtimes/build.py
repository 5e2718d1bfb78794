"""`pocketlm export`: from a model to a bundle whose artifacts have passed their certificate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import InputError, ParityError
from ..export.adapters import ADAPTER_WEIGHTS
from ..export.apple import FUNCTIONS
from ..export.bundle import Manifest, fingerprint, hash_file, hash_folder, staging, write_manifest
from ..export.caches import check_cache, target_cache
from ..export.canonical import TensorError, check_formats, check_patterns, fit_groups, matrix_formats
from ..export.check import check_tensors
from ..export.checkpoint import Checkpoint
from ..export.config import DEFAULT_CONTEXT, ModelConfig, parse_config
from ..export.gguf_codes import STORED_KINDS
from ..export.hub import is_hub_id
from ..export.open_checkpoint import open_checkpoint
from ..quantize.recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_to_toml
from ..quantize.store import Weights
from .arm64_arithmetic import arm_expectations
from .budget import Budget, fit_recipe
from .bundle_texts import check_texts, write_genai_files, write_texts
from .certificate import Certificate
from .golden import PROMPTS, Golden, expectation, make_sequences, prose_sequences, read_prose, write_golden
from .judge import JUDGE_STEPS, CheckpointWeights, Judgement, judge, judge_identity, runtime_limit
from .memory_need import Subject, check_memory, process_bytes
from .peak_memory import PeakMemory
from .progress import Progress, silent
from .prompts import encode_prompts, stop_tokens
from .quantise_model import Source, cache_tokens, open_source, write_canonical
from .target import Details, Target
from .targets import check_reference, get_target
from .thresholds import limits
from .tokenizer import load_tokenizer
from .tokenizer_check import executorch_notes

CERTIFY = ("full", "identity")
_CANONICAL = Path(".canonical", "weights.safetensors")  # while an export runs, and to be taken over from a killed one


@dataclass(frozen=True)
class _Model:
    """An opened model with all that was decided about its export."""

    name: str
    hub_id: str | None
    source: Source
    recipe: Recipe
    context: int
    stop_tokens: tuple[int, ...]
    files: Mapping[str, bytes]
    cache: str

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint

    @property
    def config(self) -> ModelConfig:
        return self.source.config


@dataclass(frozen=True)
class ExportReport:
    """What an export made, the tensors that lost most in it, and the memory that its phases took.

    resumed  tensors that an export to the same place had finished when it was killed
    """

    bundle: Path
    certificate: Certificate
    worst: tuple[TensorError, ...]
    memory: PeakMemory
    resumed: int = 0


def export(
    model: str,
    output: str | Path,
    *,
    to: Sequence[str] = ("onnx",),
    recipe: str = DEFAULT_RECIPE,
    calibration: Path | None = None,
    budget: Budget | None = None,
    context: int | None = None,
    coreml_shapes: str = "fixed",
    adapters: Sequence[str] = (),
    overwrite: bool = False,
    max_memory: int | None = None,
    certify: str = "full",
    cache: str = "float",
    progress: Progress = silent,
) -> ExportReport:
    """Quantise a model once, write it for each target, verify each file, and leave a bundle at ``output``.

    calibration    a text that says what inputs to choose integers for; None is the one that ships
    budget         choose the format of each layer to fit; the recipe gives the method, and embedding and head
    context        tokens that the artifacts' caches hold; None is 2048, or the model's own limit if that is less
    coreml_shapes  "fixed": functions for a chunk of the prompt and for one token, as the Neural Engine wants them;
                   "flexible": one function for any number of tokens, as swift-transformers calls it
    adapters       folders of LoRA adapters to merge first, ``DIR`` or ``DIR=WEIGHT``
    max_memory     bytes of resident memory that the export may take, refused at once if it needs more
    certify        "full"; or "identity": read the weights back and compare them, but run nothing, which the
                   certificate then says
    cache          "float": keys and values as the target computes them; "int8": 8 bits each, where the target can

    Raises InputError for anything that cannot be exported, ParityError if an artifact fails its certificate. In both
    cases nothing is left at ``output`` that was not there before.
    """
    output = Path(output)
    check_reference()
    targets = [get_target(name) for name in dict.fromkeys(to)]
    if not targets:
        raise InputError("name at least one target with --to")
    for name, given, allowed in (("coreml_shapes", coreml_shapes, FUNCTIONS), ("certify", certify, CERTIFY)):
        if given not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, it is {given!r}")
    for target in targets:
        target_cache(target.name, cache)
    opened = _open(model, recipe, context, calibration, adapters, targets, cache)
    if max_memory is not None:
        names = [target.name for target in targets]
        tokens = opened.source.calibration.size
        subject = Subject(opened.checkpoint, opened.config, opened.recipe, opened.context, tokens, cache)
        check_memory(subject, names, max_memory, certify, budget is not None, process_bytes())
    memory = PeakMemory()
    with staging(output, overwrite, _CANONICAL.parent.name) as folder:
        (folder / _CANONICAL.parent).mkdir(exist_ok=True)
        notes = write_texts(opened.files, folder)
        if certify == "full":
            with memory.phase("compare the tokenizer"):
                notes += check_texts(folder)
        with memory.phase("quantise"):
            if budget is not None:
                opened = _fit(opened, budget, folder, progress)
            quantised, errors, resumed = write_canonical(opened.source, opened.recipe, folder / _CANONICAL, progress)
        weights = _with_cache_scales(opened, targets, quantised, memory, progress)
        fingerprints = _fingerprints(weights)
        seconds = _lower(opened, targets, folder, weights, coreml_shapes, memory, progress)
        if certify == "full":
            certificate = _verify(opened, targets, folder, weights, fingerprints, memory, progress)
        else:
            certificate = _check_identity(opened, targets, folder, fingerprints, memory, progress)
        certificate = _with_times(certificate, seconds)
        if certify == "identity":  # as late as can be, because transformers brings torch: 600 MB
            with memory.phase("compare the tokenizer"):
                notes += check_texts(folder)
        shutil.rmtree(folder / _CANONICAL.parent)
        with progress("Hashing the files"):
            write_manifest(folder, _manifest(opened, folder, fingerprints, errors, certificate, notes))
    worst = sorted(errors, key=lambda error: -error.relative_error)[:5]
    return ExportReport(output, certificate, tuple(worst), memory, resumed)


def _with_cache_scales(
    model: _Model, targets: Sequence[Target], weights: Weights, memory: PeakMemory, progress: Progress
) -> Weights:
    """The canonical weights, with the scales of the cache if a target's has constant ones."""
    if not any(target_cache(target.name, model.cache).static_scales for target in targets):
        return weights
    from ..export.cache_scales import WithScales, measure_scales

    layers = len(model.config.layers)
    with memory.phase("measure the cache"), progress("Measuring keys and values", layers) as step:
        return WithScales(measure_scales(weights, model.config, cache_tokens(model.source), step), weights)


def _fingerprints(weights: Weights) -> dict[str, dict[str, str]]:
    with ThreadPoolExecutor(2) as pool:  # hashing lets go of the interpreter
        return dict(zip(weights, pool.map(lambda name: fingerprint(weights[name]), weights), strict=True))


def _open(
    model: str,
    recipe: str,
    context: int | None,
    calibration: Path | None,
    adapters: Sequence[str],
    targets: Sequence[Target],
    cache: str,
) -> _Model:
    """Everything that can be refused is refused here, before any work is done."""
    chosen = load_recipe(recipe)
    limits(chosen.thresholds)
    checkpoint = open_checkpoint(model, adapters)
    limit = parse_config(checkpoint.config).max_position_embeddings
    config = parse_config(checkpoint.config, context or min(DEFAULT_CONTEXT, limit))
    check_tensors(checkpoint, config)
    chosen = fit_groups(chosen, {name: checkpoint.shape(name) for name in checkpoint.names()})
    check_formats(checkpoint, list(checkpoint.names()), chosen)
    check_patterns(checkpoint, list(checkpoint.names()), chosen)
    formats = matrix_formats(checkpoint, list(checkpoint.names()), chosen)
    for target in targets:
        check_cache(target.name, cache, config)
        if target.check is not None:
            target.check(config, formats)
    if config.max_position_embeddings < 2:
        raise InputError(
            f"{model}: was made for contexts of one token, which is no conversation; it cannot be exported"
        )
    if context is not None and not 2 <= context <= config.max_position_embeddings:
        raise InputError(
            f"a context of {context} is out of range: {model} was made for 2 to {config.max_position_embeddings} tokens"
        )
    files = checkpoint.tokenizer_files()
    return _Model(
        name=model if not Path(model).exists() else Path(model).resolve().name,
        hub_id=model if is_hub_id(model) and not Path(model).exists() else None,
        source=open_source(checkpoint, config, calibration),
        recipe=chosen,
        context=context or min(DEFAULT_CONTEXT, config.max_position_embeddings),
        stop_tokens=stop_tokens(files, checkpoint.config),
        files=files,
        cache=cache,
    )


def _fit(model: _Model, budget: Budget, folder: Path, progress: Progress) -> _Model:
    """The model with a recipe that fits the budget, which is written into the bundle for people to read and edit."""
    recipe, note = fit_recipe(model.source, model.recipe, budget, progress)
    (folder / "recipe.toml").write_text(recipe_to_toml(recipe, note), encoding="utf-8")
    return replace(model, recipe=recipe)


def _lower(
    model: _Model,
    targets: Sequence[Target],
    folder: Path,
    weights: Weights,
    coreml_shapes: str,
    memory: PeakMemory,
    progress: Progress,
) -> dict[str, float]:
    """Write every target's artifact; the seconds that each took."""
    details = _details(model, coreml_shapes)
    seconds = {}
    for target in targets:
        started = time.perf_counter()
        with progress(f"Writing {target.name}"), memory.phase(f"write {target.name}"):
            (folder / target.name).mkdir()
            target.write(folder / target.name, model.config, weights, model.context, details)
        seconds[target.name] = round(time.perf_counter() - started, 2)
    if any(target.name == "onnx" for target in targets):
        write_genai_files(folder, model.config, model.context, model.stop_tokens, model.checkpoint.config)
    return seconds


def _with_times(certificate: Certificate, seconds: Mapping[str, float]) -> Certificate:
    """The certificate with the time that writing each artifact took."""
    return Certificate(
        {name: replace(target, write_seconds=seconds[name]) for name, target in certificate.targets.items()}
    )


def _details(model: _Model, coreml_shapes: str) -> Details:
    beginning = model.checkpoint.config.get("bos_token_id")
    return Details(
        beginning=beginning if isinstance(beginning, int) else None,
        stops=model.stop_tokens,
        name=model.name,
        hub_id=model.hub_id,
        recipe=model.recipe.name,
        licence=model.checkpoint.licence,
        coreml_shapes=coreml_shapes,
        cache=model.cache,
    )


def _verify(
    model: _Model,
    targets: Sequence[Target],
    folder: Path,
    canonical: Weights,
    fingerprints: Mapping[str, Mapping[str, str]],
    memory: PeakMemory,
    progress: Progress,
) -> Certificate:
    """Judge every artifact, and write golden.json; raises ParityError if one fails."""
    from ..export.to_torch import reference_logits

    tokenizer = load_tokenizer(folder)
    encoded, prose = encode_prompts(folder, tokenizer), tokenizer.encode(read_prose(), special=False)
    with progress("Answering the golden prompts"), memory.phase(f"verify {targets[0].name}"):
        session = targets[0].open_session(folder / targets[0].name, 2)
        evaluation = make_sequences(encoded, prose, tokenizer.beginning(), session)
        del session
    with progress("Running the source model"), memory.phase("run the source model"):
        weights = CheckpointWeights(model.checkpoint)
        source = reference_logits(weights, model.config, evaluation.tokens, first=evaluation.first)
    judged: dict[str, Judgement] = {}
    golden: dict[str, Mapping[str, Any]] = {}
    for target in targets:
        allowed, cache = limits(model.recipe.thresholds, target.limits), target_cache(target.name, model.cache)
        with memory.phase(f"verify {target.name}"), progress(f"Verifying {target.name}", JUDGE_STEPS) as step:
            judgement = judge(
                target, folder / target.name, model.config, fingerprints, evaluation, source, allowed, step, cache
            )
        judged[target.name] = judgement
        _gate(target.name, judgement)
        assert judgement.expected is not None
        assert judgement.certificate.runtime is not None
        golden[target.name] = expectation(judgement.expected, runtime_limit(judgement.certificate.runtime, allowed))
        golden |= arm_expectations(target.name, canonical, model.config, evaluation, allowed, cache)
    write_golden(folder, Golden(evaluation, PROMPTS, golden), tokenizer.decode)
    certificates = {name: judgement.certificate for name, judgement in judged.items()}
    if "executorch" in certificates:
        found = certificates["executorch"]
        certificates["executorch"] = replace(found, notes=(*found.notes, *executorch_notes(folder, tokenizer)))
    return Certificate(certificates)


def _check_identity(
    model: _Model,
    targets: Sequence[Target],
    folder: Path,
    fingerprints: Mapping[str, Mapping[str, str]],
    memory: PeakMemory,
    progress: Progress,
) -> Certificate:
    """Judge the content of every artifact without running it; golden.json gets the sequences to judge it on later."""
    tokenizer = load_tokenizer(folder)
    prose = tokenizer.encode(read_prose(), special=False)
    evaluation = prose_sequences(prose, tokenizer.beginning(), model.context)
    judged = {}
    for target in targets:
        with memory.phase(f"verify {target.name}"), progress(f"Reading {target.name} back"):
            cache = target_cache(target.name, model.cache)
            judgement = judge_identity(target, folder / target.name, model.config, fingerprints, cache)
        _gate(target.name, judgement)
        judged[target.name] = judgement.certificate
    write_golden(folder, Golden(evaluation, (), {}), tokenizer.decode)
    return Certificate(judged)


def _gate(name: str, judgement: Judgement) -> None:
    failures = judgement.certificate.failures
    if failures:
        more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
        raise ParityError(f"{name} failed its certificate: {'; '.join(failures[:3])}{more}; nothing was written")


def _codes_note(model: _Model, errors: Sequence[TensorError]) -> tuple[str, ...]:
    """What became of a source's own integers, if it has some."""
    kinds = {error.name: model.checkpoint.kind(error.name) for error in errors if error.format.bits is not None}
    own = [name for name, kind in kinds.items() if kind in STORED_KINDS]
    if not own:
        return ()
    kept = sum(error.name in own and error.relative_error == 0 for error in errors)
    return (
        f"of {len(own)} matrices quantised to Q4_0 or Q8_0 in the source {kept} were kept, the others quantised again",
    )


def _manifest(
    model: _Model,
    folder: Path,
    fingerprints: Mapping[str, Mapping[str, str]],
    errors: Sequence[TensorError],
    certificate: Certificate,
    notes: tuple[str, ...],
) -> Manifest:
    source = {path.name: hash_file(path) for path in model.checkpoint.files if path.name != ADAPTER_WEIGHTS}
    for path in model.checkpoint.files:
        if path.name == ADAPTER_WEIGHTS:  # all adapters' files are called the same
            source[f"{path.parent.name}/{path.name}"] = hash_file(path)
    return Manifest(
        pocketlm=__version__,
        name=model.name,
        source=source,
        config=dict(model.checkpoint.config),
        recipe=model.recipe.to_json(),
        context=model.context,
        stop_tokens=model.stop_tokens,
        licence=model.checkpoint.licence,
        weights=fingerprints,
        quantization={error.name: round(error.relative_error, 6) for error in errors},
        notes=(*notes, *model.checkpoint.changes, *_codes_note(model, errors)),
        caches={name: target_cache(name, model.cache).name for name in certificate.targets},
        files=hash_folder(folder),
        certificate=certificate.to_json(),
    )
