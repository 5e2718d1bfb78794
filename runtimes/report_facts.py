"""What a report says of a bundle itself, as plain text and tables: the page and the model card show the same."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ..errors import InputError
from ..export.bundle import FileEntry, Manifest
from ..export.families import FAMILIES
from ..quantize.recipe import RECIPES, recipe_to_toml
from .certificate import Error, TargetCertificate
from .device_results import DeviceResults
from .evaluation_report import by_layer
from .judge import runtime_limit
from .report_read import ReportData
from .targets import get_target
from .thresholds import limits

NOT_MEASURED = "not measured"
ERRORS = {
    "conversion": "the quantised weights on the fp32 reference, against the file computed with fp32 activations",
    "runtime": "the file as shipped, against the reference with its kernels' arithmetic emulated",
    "activation": "that emulation, against the reference without it: what the kernels' rounding costs",
    "cache": "keys and values in int8 on the reference, against floating point",
    "quantization": "the source model, against the quantised weights, both in fp32",
    "total": "the source model, against the file as shipped: what a user feels",
}
_METHODS = {
    "rtn": "rounded to nearest",
    "layerwise": "chosen for the inputs that each layer sees on a calibration text",
    "calibrated": "calibrated on a text",
    "tuned": "calibrated on a text, scales and norms trained longer",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under heads; the first cell of a row is its own head. ``note`` stands below."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the certificate comes to: ``kind`` is good, partly or bad; ``lines`` say what is missing or failed."""

    kind: str
    headline: str
    lines: tuple[str, ...]


def unmeasured(target: TargetCertificate) -> list[str]:
    """The errors that a certificate lacks; a cache of floating point has none."""
    return [
        error for error in ERRORS if getattr(target, error) is None and (error != "cache" or error in target.left_out)
    ]


def is_of(data: ReportData, device: DeviceResults) -> bool:
    """Whether a phone's results are those of this very bundle."""
    return device.manifest_sha256 == data.manifest_sha256


def _failures(data: ReportData) -> list[str]:
    targets = data.certificate.targets.items()
    here = [f"{name}: {line}" for name, target in targets for line in target.failures]
    here += [f"{name}: its weights are not the canonical ones" for name, t in targets if not t.weights_identical]
    return here + [
        f"{name}: the replay on {device.model} failed"
        for device in data.devices.values()
        if is_of(data, device)
        for name, found in device.verify.items()
        if not found["passed"]
    ]


def verdict(data: ReportData) -> Verdict:
    """The certificate in one line, and each thing that takes something from it."""
    judged = data.certificate.targets
    held = data.manifest.targets
    unjudged = [name for name in held if name not in judged]
    failures = _failures(data)
    gaps = [f"{name}: has no certificate; nothing is known of what it computes" for name in unjudged]
    gaps += [f"{name}: {', '.join(missing)} not measured" for name in judged if (missing := unmeasured(judged[name]))]
    lines = failures + gaps
    if data.changed:
        more = f" and {len(data.changed) - 3} more" if len(data.changed) > 3 else ""
        lines.append(
            f"missing, or changed since the export: {', '.join(data.changed[:3])}{more}; no certificate holds for that"
        )
    if not held:
        lines.append("the bundle holds no artifact")
    if failures:
        return Verdict("bad", "Verification failed", tuple(lines))
    if data.changed:
        return Verdict("bad", "The files are not those that were verified", tuple(lines))
    if not any(name in judged for name in held):
        return Verdict("bad", "Not verified: there is no certificate", tuple(lines))
    if gaps:
        return Verdict("partly", "Only a part was verified", tuple(lines))
    return Verdict("good", f"Verified: {', '.join(held)} computed what the model computes, within limits", ())


def parameters(manifest: Manifest) -> int | None:
    """Weights of all tensors, a table that is shared counted once; None if a shape cannot be read."""
    shapes = [
        re.fullmatch(r".* (\d{1,12}(?:x\d{1,12}){0,3})", prints["format"]) for prints in manifest.weights.values()
    ]
    if not shapes or None in shapes:
        return None
    return sum(math.prod(map(int, shape.group(1).split("x"))) for shape in shapes if shape is not None)


def count_text(count: int | None) -> str:
    """A number of parameters as people say it."""
    if count is None:
        return "not known"
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.1f} {name} ({count:,})"
    return f"{count:,}"


def megabytes(size: float) -> str:
    """Bytes in MB of 10**6, or kB; the space does not break."""
    return f"{size / 1e6:,.1f}\N{NO-BREAK SPACE}MB" if size >= 1e5 else f"{size / 1e3:,.1f}\N{NO-BREAK SPACE}kB"


def model_table(data: ReportData) -> Table:
    """What the model is."""
    manifest, config = data.manifest, data.config
    attention = config.layers[0].attention
    heads = f"{attention.heads} query and {attention.kv_heads} key/value heads of {attention.head_dim}"
    mixture = next((layer.mlp.experts for layer in config.layers if layer.mlp.experts is not None), None)
    experts = f"; {mixture.active} of {mixture.count} experts for each token" if mixture else ""
    family = FAMILIES.get(config.model_type)
    formats = Counter(prints["format"].rpartition(" ")[0] for prints in manifest.weights.values())
    rows = (
        ("Name", manifest.name),
        ("Family", config.model_type + (f" (as {family.models})" if family else "")),
        ("Parameters", count_text(parameters(manifest))),
        ("Shape", f"{len(config.layers)} layers, width {config.hidden_size}, {heads} in the first layer{experts}"),
        ("Context", f"{manifest.context:,} tokens here; the model was made for {_made_for(manifest)}"),
        ("Vocabulary", f"{config.vocab_size:,}{', table and head shared' if config.tie_word_embeddings else ''}"),
        ("Tokenizer", _tokenizer(data)),
        ("Chat template", "yes" if "chat_template.jinja" in manifest.files else "none: it completes text"),
        ("Recipe", f"{_recipe_name(data)}, {_method(data)}"),
        ("Weights", ", ".join(f"{count} × {form}" for form, count in formats.most_common()) or "not listed"),
        ("Licence", manifest.licence or "the source states none"),
        ("Made by", f"pocketlm {manifest.pocketlm}"),
    )
    return Table("What the model is", ("property", "value"), rows)


def _made_for(manifest: Manifest) -> str:
    for key in ("max_position_embeddings", "n_positions", "max_context_length"):
        length = manifest.config.get(key)
        if isinstance(length, int):
            return f"{length:,}"
    return "an unknown number"


def _tokenizer(data: ReportData) -> str:
    found = data.tokenizer
    entry = data.manifest.files.get("tokenizer.json")
    kind = "cannot be read" if found is None else f"{found.kind}, {found.entries:,} entries"
    return kind if entry is None else f"{kind}, sha256 {entry.sha256}"


def _recipe_name(data: ReportData) -> str:
    return "unknown" if data.recipe is None else data.recipe.name


def _method(data: ReportData) -> str:
    method = None if data.recipe is None else data.recipe.method
    return _METHODS.get(method or "", "by a method that is not known here")


def source_table(data: ReportData) -> Table:
    """The files that the weights came from, with their hashes."""
    return _file_table("Source files", data.manifest.source)


def file_table(data: ReportData) -> Table:
    """The files of the bundle, with their hashes."""
    return _file_table("Files of the bundle", data.manifest.files)


def _file_table(caption: str, files: Mapping[str, FileEntry]) -> Table:
    rows = tuple((name, f"{megabytes(entry.size_bytes)}, {entry.sha256}") for name, entry in files.items())
    return Table(caption, ("file", "size, sha256"), rows)


def target_sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of each artifact's folder, by target."""
    files = manifest.files.items()
    return {
        name: sum(entry.size_bytes for path, entry in files if path.startswith(name + "/")) for name in manifest.targets
    }


def size_table(data: ReportData) -> Table:
    """Bytes of each artifact, beside the source's and for each parameter."""
    count = parameters(data.manifest)
    source = sum(entry.size_bytes for entry in data.manifest.source.values())
    rows = tuple(
        (
            name,
            megabytes(size),
            f"{100 * size / source:.0f}\N{NO-BREAK SPACE}%" if source else "not known",
            f"{8 * size / count:.2f}" if count else "not known",
        )
        for name, size in target_sizes(data.manifest).items()
    )
    note = "Everything in the target's folder, with the copies of tokenizer files that its runtime wants beside it."
    return Table("Size of each artifact", ("target", "size", "of the source", "bits a weight"), rows, note)


def kl_text(value: float) -> str:
    """A KL, or any small figure, to two digits."""
    return f"{value:.2g}" if math.isfinite(value) else "not a number"


def _error_row(name: str, target: TargetCertificate) -> str:
    error: Error | None = getattr(target, name)
    return kl_text(error.kl) if error is not None else "-" if name == "cache" else NOT_MEASURED


def _floor(target: TargetCertificate) -> str:
    floor = None if target.runtime is None else target.runtime.noise_floor_kl
    return NOT_MEASURED if floor is None else kl_text(floor)


def _top(target: TargetCertificate) -> str:
    return NOT_MEASURED if target.total is None else f"{100 * target.total.top1:.1f} %"


def _perplexity(target: TargetCertificate) -> str:
    ratio = None if target.total is None else target.total.perplexity_ratio
    return NOT_MEASURED if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def _exactness(target: TargetCertificate) -> str:
    found = target.exactness
    return "not run" if found is None else f"{kl_text(found.deviation)} ({found.programs})"


def _identity(target: TargetCertificate) -> str:
    return f"{'yes' if target.weights_identical else 'NO'} ({target.tensors_checked})"


_CERTIFICATE_ROWS: tuple[tuple[str, Callable[[TargetCertificate], str]], ...] = (
    ("verdict", lambda target: "passed" if target.passed else "FAILED"),
    ("weights identical (matrices)", _identity),
    ("norms and constants compared", lambda target: str(target.constants_checked)),
    *((f"{name} error, KL", partial(_error_row, name)) for name in ("conversion", "runtime")),
    ("noise floor of the runtime, KL", _floor),
    *((f"{name} error, KL", partial(_error_row, name)) for name in ("activation", "cache", "quantization", "total")),
    ("same most likely token, total", _top),
    ("perplexity against the source, total", _perplexity),
    ("single operations, relative (programs)", _exactness),
    ("positions measured", lambda target: str(target.positions)),
)


def has_quantised_cache(data: ReportData) -> bool:
    """Whether an artifact keeps keys and values in less than floating point."""
    return any(form is not None and not form.is_float for form in map(data.manifest.cache, data.manifest.targets))


def certificate_table(data: ReportData) -> Table:
    """The errors of each target, told apart by cause; no rows if nothing was verified."""
    targets = data.certificate.targets
    quantised = has_quantised_cache(data)
    rows = tuple(
        (label, *(show(target) for target in targets.values()))
        for label, show in _CERTIFICATE_ROWS
        if quantised or not label.startswith("cache")
    )
    note = "KL in nats, means over the positions: how far the distribution of the next token moved."
    return Table("Certificate", ("", *targets), rows if targets else (), note)


def error_limits(data: ReportData) -> dict[tuple[str, str], float]:
    """(error, target) -> the KL that it may not exceed by this pocketlm's rules, where there is a limit."""
    found: dict[tuple[str, str], float] = {}
    for name, target in data.certificate.targets.items():
        try:
            allowed = limits(dict(data.recipe.thresholds) if data.recipe else {}, get_target(name).limits)
        except InputError:  # a threshold or a target that is not known here
            continue
        found |= {(error, name): allowed[f"{error}.kl"] for error in ERRORS if f"{error}.kl" in allowed}
        if target.runtime is not None:
            found["runtime", name] = runtime_limit(target.runtime, allowed)
    return {key: limit for key, limit in found.items() if math.isfinite(limit)}


_COLUMNS = ("q", "k", "v", "qkv", "o", "gate", "up", "down")


def layer_errors(data: ReportData) -> dict[int, dict[str, float]]:
    """Relative error that quantising made, by layer and by what is computed there; of experts the largest."""
    largest: dict[str, float] = {}
    for name, error in data.manifest.quantization.items():
        if not name.endswith("norm.weight"):
            short = re.sub(r"experts\.\d+\.", "experts.", name.removesuffix(".weight"))
            largest[short] = max(error, largest.get(short, 0.0))
    return dict(sorted(by_layer(largest).items()))


def layer_columns(rows: Mapping[int, Mapping[str, float]]) -> list[str]:
    """What layers compute, attention first."""
    found = dict.fromkeys(head for row in rows.values() for head in row)
    return sorted(found, key=lambda head: (*_COLUMNS, head).index(head))


def layer_table(data: ReportData) -> Table:
    """The same in percent: rows are layers."""
    rows = layer_errors(data)
    heads = layer_columns(rows)
    cells = tuple(
        (str(layer), *(f"{100 * row[head]:.2f}" if head in row else "" for head in heads))
        for layer, row in rows.items()
    )
    return Table("Relative error of each matrix, %", ("layer", *heads), cells)


def commands(data: ReportData) -> tuple[str, ...]:
    """What makes this bundle again and judges it, in a checkout of pocketlm; names are quoted for a shell."""
    manifest, model = data.manifest, shlex.quote(data.manifest.name)
    recipe = _recipe_name(data) if data.recipe == RECIPES.get(_recipe_name(data)) else "recipe.toml"
    targets = " ".join(manifest.targets) or "onnx"
    extras = ",".join([*manifest.targets, "reference"])
    return (
        f"pip install '.[{extras}]' -c constraints.txt",
        f"pocketlm export {model} -o bundle --to {targets} --recipe {recipe} --context {manifest.context}",
        f"pocketlm verify bundle --reference {model}",
    )


def recipe_toml(data: ReportData) -> str | None:
    """recipe.toml for those commands, where the recipe is not a built-in one."""
    recipe = data.recipe
    if recipe is None or recipe == RECIPES.get(recipe.name):
        return None
    return recipe_to_toml(recipe)
