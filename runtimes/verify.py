"""`pocketlm verify`: does a bundle still compute what its model computes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import Manifest, changed_files, read_manifest
from ..export.check import check_tensors
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig, parse_config
from ..export.open_checkpoint import open_checkpoint
from .certificate import Certificate, TargetCertificate, error_from_json
from .chat import load_stop_tokens
from .chat_template import load_chat_template, load_json
from .golden import Golden, read_golden, replay_kl
from .identity import check_identity
from .judge import JUDGE_STEPS, CheckpointWeights, Evaluation, Judgement, Logits, judge
from .progress import Progress, silent
from .targets import check_reference, get_target
from .thresholds import limits
from .tokenizer import load_tokenizer


def verify(
    bundle: str | Path,
    targets: Sequence[str] | None = None,
    model: str | None = None,
    *,
    adapters: Sequence[str] = (),
    hashes: bool = True,
    progress: Progress = silent,
) -> Certificate:
    """Judge the artifacts of a bundle again, and replay its golden file.

    targets  names; None is all that the bundle holds
    model    the source model, to measure quantization and total again; without it they are taken from the manifest
    adapters  those that were merged into the model, as for ``export``
    hashes   refuse files that are not the manifest's; without, they are judged as they are

    Raises InputError if the bundle is damaged, or a file's hash is not the manifest's.
    """
    bundle = Path(bundle)
    check_reference()
    manifest = read_manifest(bundle)
    names = check_targets(bundle, manifest, targets)
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
    if golden.evaluation.tokens.max() >= config.vocab_size or golden.evaluation.tokens.min() < 0:
        raise InputError(f"{bundle}: golden.json has tokens outside the vocabulary; export again")
    thresholds = manifest.recipe.get("thresholds", {})
    source = None
    if model is not None:
        source = source_logits(open_checkpoint(model, adapters), config, manifest.context, golden.evaluation, progress)
    found = {}
    for name in names:
        with progress(f"Verifying {name}", JUDGE_STEPS) as step:
            target = get_target(name)
            allowed = limits(thresholds, target.limits)
            judgement = judge(target, bundle / name, config, manifest.weights, golden.evaluation, source, allowed, step)
        found[name] = _with_context(_with_replay(judgement, golden, name), judgement.context, manifest.context)
        if source is None:
            found[name] = _with_known(found[name], manifest.certificate, name)
    return Certificate(found)


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
            differences = check_identity(found, manifest.weights, config).differences
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


def _with_replay(judgement: Judgement, golden: Golden, name: str) -> TargetCertificate:
    """Hold what the artifact gave against golden.json, which was written when it was exported."""
    certificate, expected = judgement.certificate, golden.targets.get(name)
    if judgement.shipped is None:
        return certificate
    if expected is None:
        return replace(certificate, failures=(*certificate.failures, f"golden.json has nothing for {name}"))
    kl, tolerance = replay_kl(expected["expected"], judgement.shipped), expected["tolerance_kl"]
    if not kl <= tolerance:
        line = f"golden replay: KL {kl:.3g} exceeds {tolerance:.3g}"
        certificate = replace(certificate, failures=(*certificate.failures, line))
    return certificate


def _with_context(certificate: TargetCertificate, held: int | None, stated: int) -> TargetCertificate:
    """Hold the length of the artifact's cache against the manifest."""
    if held is None or held == stated:
        return certificate
    line = f"context: the artifact holds {held} tokens, pocketlm.json says {stated}"
    return replace(certificate, failures=(*certificate.failures, line))


def _with_known(certificate: TargetCertificate, known: Mapping[str, Any], name: str) -> TargetCertificate:
    """Quantization and total as they were measured at export, when the source was at hand."""
    before = known.get("targets", {}).get(name, {})
    if certificate.runtime is None or not before:
        return certificate
    written = before.get("write_seconds")
    return replace(
        certificate,
        write_seconds=written if isinstance(written, (int, float)) else None,
        quantization=error_from_json(before.get("quantization")),
        total=error_from_json(before.get("total")),
        notes=(*certificate.notes, "quantization and total are those measured at export; give --reference to repeat"),
    )
