"""`pocketlm verify`: does a bundle still compute what its model computes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import Manifest, changed_files, read_manifest
from ..export.check import check_tensors
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig, parse_config
from ..export.open_checkpoint import open_checkpoint
from .arm64_verify import check_on_arm64, verify_on_arm64
from .certificate import Certificate, TargetCertificate, error_from_json
from .chat import load_stop_tokens
from .chat_template import load_chat_template, load_json
from .golden import first_sequences, read_golden
from .identity import check_identity
from .judge import JUDGE_STEPS, CheckpointWeights, Evaluation, Judgement, Logits, judge
from .progress import Progress, silent
from .replay import with_replay
from .target import Target
from .targets import check_reference, get_target
from .thresholds import limits
from .tokenizer import load_tokenizer

HOST = "host"


def verify(
    bundle: str | Path,
    targets: Sequence[str] | None = None,
    model: str | None = None,
    *,
    adapters: Sequence[str] = (),
    hashes: bool = True,
    on: Sequence[str] = (),
    device: str | None = None,
    sequences: int | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Judge the artifacts of a bundle again, and replay its golden file.

    targets  names; None is all that the bundle holds
    model    the source model, to measure quantization and total again; without it they are taken from the manifest
    adapters  those that were merged into the model, as for ``export``
    hashes   refuse files that are not the manifest's; without, they are judged as they are
    on       places to run the artifacts: "host", "arm64" or "arm64:CORE"; none is the host
    device   the phone of devices.toml whose memory holds on arm64; None is the smallest with such a core
    sequences  replay only so many of the answers, and as many pieces of prose; None is all

    Raises InputError if the bundle is damaged, or a file's hash is not the manifest's.
    """
    bundle = Path(bundle)
    check_reference()
    manifest = read_manifest(bundle)
    names = check_targets(bundle, manifest, targets)
    columns = [
        (place, name)
        for place in dict.fromkeys(on or (HOST,))
        for name in (names if place == HOST else check_on_arm64(place, device, names, explicit=bool(targets)))
    ]
    config = parse_config(manifest.config, manifest.context)
    if hashes:
        check_hashes(bundle, manifest, config)
    else:
        check_texts(bundle)
    if not 2 <= manifest.context <= config.max_position_embeddings or max(manifest.stop_tokens) >= config.vocab_size:
        raise InputError(
            f"{bundle}: pocketlm.json has a context or stop tokens that the model cannot have; export again"
        )
    golden = read_golden(bundle)
    if sequences is not None:
        golden = first_sequences(golden, sequences)
    if golden.evaluation.tokens.max() >= config.vocab_size or golden.evaluation.tokens.min() < 0:
        raise InputError(f"{bundle}: golden.json has tokens outside the vocabulary; export again")
    source = None
    if model is not None:
        source = source_logits(open_checkpoint(model, adapters), config, manifest.context, golden.evaluation, progress)
    found = {}
    for place, name in columns:
        column = name if place == HOST else f"{name} {place}"
        with progress(f"Verifying {column}", JUDGE_STEPS) as step:
            judging = partial(_judge, bundle / name, manifest, config, golden.evaluation, source, step)
            replaying = partial(with_replay, golden=golden, context=manifest.context, part=sequences is not None)
            if place == HOST:
                found[column] = replaying(judging(get_target(name)), entry=name)
            else:
                found[column] = verify_on_arm64(name, place, device, judging, replaying)
        if source is None:
            found[column] = _with_known(found[column], manifest.certificate, name, total=place == HOST)
    return Certificate(found)


def _judge(
    folder: Path,
    manifest: Manifest,
    config: ModelConfig,
    evaluation: Evaluation,
    source: Logits | None,
    step: Callable[[], None],
    target: Target,
) -> Judgement:
    allowed = limits(manifest.recipe.get("thresholds", {}), target.limits)
    cache = manifest.cache(target.name)
    return judge(target, folder, config, manifest.weights, evaluation, source, allowed, step, cache)


def check_targets(bundle: Path, manifest: Manifest, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The targets to work on; raises InputError if the bundle lacks one."""
    names = manifest.targets if not targets else tuple(targets)
    absent = [name for name in names if name not in manifest.targets]
    if absent or not names:
        held = ", ".join(manifest.targets) or "no artifact"
        raise InputError(
            f"{bundle}: has no {absent[0] if absent else 'target'}, it holds {held}; export again with --to"
        )
    return names


_SMALL = 64 << 20  # bytes: any tokenizer is smaller, and hashing this takes a fraction of a second


def check_small_files(bundle: Path, manifest: Manifest) -> None:
    """Raise InputError if a file beside the weights was changed: with another template a model answers nonsense."""
    changed = changed_files(bundle, manifest, _SMALL)
    if changed:
        raise InputError(f"{bundle}: {changed[0]} is missing or was changed since the export; export again")


def check_texts(bundle: Path) -> None:
    """Raise InputError if what an app reads beside the artifacts cannot be used, whatever its hash."""
    load_tokenizer(bundle)
    load_stop_tokens(bundle)
    if (bundle / "chat_template.jinja").is_file():
        load_chat_template(bundle)
    for path in (bundle / "chat_turns.json", bundle / "onnx" / "genai_config.json"):
        if path.is_file():
            load_json(path)


def check_hashes(bundle: Path, manifest: Manifest, config: ModelConfig) -> None:
    """Raise InputError if a file's bytes are not the manifest's, naming the weights that changed if there are any."""
    changed = changed_files(bundle, manifest)
    if not changed:
        return
    weights = _changed_weights(bundle, manifest, config, changed)
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise InputError(
        f"{bundle}: {changed[0]}{more} is missing or was changed since the export (sha256 differs)"
        f"{'; ' + weights[0] if weights else ''}; export again, or judge it as it is with --no-hashes"
    )


def _changed_weights(bundle: Path, manifest: Manifest, config: ModelConfig, changed: Sequence[str]) -> tuple[str, ...]:
    for name in sorted({path.partition("/")[0] for path in changed} & set(manifest.targets)):
        try:
            found = get_target(name).read_back(bundle / name, config)
            differences = check_identity(found, manifest.weights, config, manifest.cache(name)).differences
        except InputError as error:
            return (str(error),)
        if differences:
            return differences
    return ()


def source_logits(
    checkpoint: Checkpoint, config: ModelConfig, context: int, evaluation: Evaluation, progress: Progress
) -> Logits:
    """The source model's logits over the evaluation; raises InputError if it is another model."""
    from ..export.to_torch import reference_logits

    if parse_config(checkpoint.config, context) != config:
        raise InputError(
            f"{checkpoint.files[0].parent}: its config.json is not that of the bundle's source; "
            "name the model it was made from"
        )
    check_tensors(checkpoint, config)
    with progress("Running the source model"):
        return reference_logits(CheckpointWeights(checkpoint), config, evaluation.tokens, first=evaluation.first)


def _with_known(
    certificate: TargetCertificate, known: Mapping[str, Any], name: str, *, total: bool
) -> TargetCertificate:
    """Quantization and total as they were measured at export, when the source was at hand.

    ``total``: whether that of the export holds here; on another processor the artifact gives something else.
    """
    before = known.get("targets", {}).get(name, {})
    if certificate.runtime is None or not before or before.get("left_out"):
        return certificate
    written = before.get("write_seconds")
    return replace(
        certificate,
        write_seconds=written if isinstance(written, (int, float)) else None,
        quantization=error_from_json(before.get("quantization")),
        total=error_from_json(before.get("total")) if total else None,
        notes=(
            *certificate.notes,
            f"quantization {'and total are those' if total else 'is that'} measured at export; "
            "give --reference to repeat",
        ),
    )
