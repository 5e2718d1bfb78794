"""`pocketlm inspect`: what is in a checkpoint, a bundle or an artifact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, changed_files, read_manifest
from ..export.config import parse_config
from ..export.open_checkpoint import open_checkpoint


def inspect(path: str) -> dict[str, Any]:
    """What is at ``path``, as a JSON object with a key ``kind``: bundle, onnx, executorch, coreml or checkpoint."""
    place = Path(path)
    if (place / MANIFEST_FILE).is_file():
        return _inspect_bundle(place)
    if place.is_file() and place.suffix == ".onnx":
        return _inspect_onnx(place)
    if place.is_file() and place.suffix == ".pte":
        return _inspect_pte(place)
    if place.suffix == ".mlpackage":
        return _inspect_package(place)
    if place.is_file() and place.suffix in (".json", ".data", ".jinja"):
        raise InputError(f"{path}: is a part of a model or bundle; name its folder, or the .onnx, .pte or .gguf file")
    return _inspect_checkpoint(path)


def _inspect_bundle(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    sizes = {
        name: sum(entry.size_bytes for path, entry in manifest.files.items() if path.startswith(name + "/"))
        for name in manifest.targets
    }
    return {
        "kind": "bundle",
        "name": manifest.name,
        "made_by": f"pocketlm {manifest.pocketlm}",
        "model_type": manifest.config.get("model_type"),
        "recipe": manifest.recipe.get("name"),
        "context": manifest.context,
        "caches": dict(manifest.caches),
        "stop_tokens": list(manifest.stop_tokens),
        "licence": manifest.licence,
        "source": {name: {"size_bytes": e.size_bytes, "sha256": e.sha256} for name, e in manifest.source.items()},
        "targets_bytes": sizes,
        "formats": dict(Counter(prints["format"].split()[0] for prints in manifest.weights.values())),
        "notes": list(manifest.notes),
        "passed": manifest.certificate.get("passed"),
        "lint": _kept_lint(manifest.certificate),
        "changed_files": changed_files(folder, manifest),
    }


def _kept_lint(certificate: Mapping[str, Any]) -> dict[str, list[str]]:
    """Target -> what lint found when the bundle was made."""
    targets = certificate.get("targets")
    found = {name: target.get("lint", []) for name, target in (targets if isinstance(targets, dict) else {}).items()}
    return {name: lines for name, lines in found.items() if lines}


def _inspect_onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise InputError("reading ONNX files needs onnx; run: pip install 'pocketlm[onnx]'") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class of their own
        raise InputError(f"{path}: not a readable ONNX file ({error})") from error
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        weights[kind] += math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    kinds = onnx.TensorProto.DataType
    inputs = [(value.name, kinds.Name(value.type.tensor_type.elem_type).lower()) for value in model.graph.input]
    return {
        "kind": "onnx",
        "producer": model.producer_name,
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weights_bytes": dict(weights),
        "cache": sorted({kind for name, kind in inputs if name.startswith("past_key_values.")}),
        "inputs": len(model.graph.input),
        "outputs": len(model.graph.output),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _inspect_pte(path: Path) -> dict[str, Any]:
    from .pte_report import inspect_pte

    report = inspect_pte(path)
    return {
        "kind": "executorch",
        "file_bytes": report.file_bytes,
        "backends": dict(report.backends),
        "delegated": dict(report.delegated),
        "left_to_kernels": dict(report.kernels),
        "unexpected_there": list(report.unexpected),
        "weights_bytes": dict(report.weights),
        "stored_twice_bytes": report.twice_bytes,
        "memory_plan_bytes": dict(report.memory),
        "constant_methods": dict(report.constant_methods),
    }


def _inspect_package(path: Path) -> dict[str, Any]:
    from .coreml_lint import lint
    from .mil_package import MilPackage

    package = MilPackage(path)
    functions = [package.function(name) for name in package.function_names]
    return {
        "kind": "coreml",
        "functions": {function.name: ", ".join(function.inputs) for function in functions},
        "operators": {
            function.name: dict(Counter(step.kind for step in function.steps).most_common()) for function in functions
        },
        "states": {name: list(shape) for name, shape in functions[0].states.items()},
        "weights_bytes": package.weights_path.stat().st_size,
        "metadata": dict(package.metadata),
        "lint": [str(finding) for finding in lint(path)],
    }


def _inspect_checkpoint(path: str) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    config = parse_config(checkpoint.config)
    heads = dict.fromkeys(
        f"{a.heads} ({a.kv_heads} for keys and values) of {a.head_dim}"
        for a in (lay.attention for lay in config.layers)
    )
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    return {
        "kind": "checkpoint",
        "model_type": config.model_type,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "tensors": len(shapes),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": ", ".join(heads),
        "vocab_size": config.vocab_size,
        "tied_embedding": config.tie_word_embeddings,
        "longest_context": config.max_position_embeddings,
        "licence": checkpoint.licence,
        "files": {file.name: file.stat().st_size for file in checkpoint.files},
        "tokenizer_files": sorted(checkpoint.tokenizer_files()),
    }


_SHORT = 40  # items of a list that are longer get a line each


def show(found: Mapping[str, Any]) -> None:
    """Print what ``inspect`` found as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        table.add_row(key.replace("_", " "), _text(value))
    Console(highlight=False).print(table)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        between = "\n" if any(len(str(item)) > _SHORT for item in value) else ", "
        return between.join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10000 else "-" if value is None else str(value)
