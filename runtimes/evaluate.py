"""`pocketlm eval`: what a bundle's weights, or a recipe, keep of a model's quality on a text of one's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE, read_manifest
from ..export.canonical import fit_groups
from ..export.check import check_tensors
from ..export.checkpoint import Checkpoint
from ..export.config import ModelConfig, parse_config
from ..export.open_checkpoint import open_checkpoint
from ..quantize.recipe import load_recipe
from ..quantize.store import Weights
from .calibration import LENGTH, cut_sequences, read_text_file
from .judge import CheckpointWeights
from .progress import Progress, silent
from .quality import Quality, layer_errors, measure_quality, quality_steps
from .quantise_model import open_source, write_canonical
from .targets import check_reference, get_target
from .tokenizer import Tokenizer, load_tokenizer

DEFAULT_TOKENS = 20480
_SOURCE = "source"
_LAYER_SEQUENCES = 2  # errors by layer are means over thousands of values for each token


@dataclass(frozen=True)
class Candidate:
    """A set of weights that was judged.

    size_bytes    of codes, scales and dense tensors together, as the canonical file or the artifact holds them
    layer_errors  relative error of what each layer computes, by name (see ``layer_errors``); None without a source
    """

    quality: Quality
    size_bytes: int
    layer_errors: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `eval` found: the candidates by name, the source's own quality if it was at hand, tokens read."""

    tokens: int
    sequences: int
    source: Quality | None
    candidates: Mapping[str, Candidate]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def evaluate(
    subject: str,
    text: Path,
    *,
    recipes: Sequence[str] = (),
    reference: str | None = None,
    calibration: Path | None = None,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress = silent,
) -> Evaluation:
    """Measure perplexity, KL and top-1 agreement on a text, with the weights alone: activations stay in fp32.

    subject      a bundle, or a model, which is then quantised by each of ``recipes`` (none: only its perplexity)
    text         a file in UTF-8, read in pieces spread evenly over it
    reference    the source model of a bundle; without it, a bundle's perplexity is all that can be told
    calibration  as for `export`
    tokens       at most so many

    Raises InputError if the subject cannot be read, the text is too short, or the reference is another model.
    """
    check_reference()
    content = read_text_file(text)
    checkpoint, config, tokenizer = _open(subject, recipes, reference)
    count = max(1, tokens // min(LENGTH, config.max_position_embeddings))
    ids = cut_sequences(content, tokenizer, config.max_position_embeddings, count)
    with tempfile.TemporaryDirectory(prefix="pocketlm-eval-") as temporary:
        if _is_bundle(subject):
            found = {Path(subject).resolve().name: _bundle_weights(Path(subject), config)}
        else:
            assert checkpoint is not None
            found = _quantised(checkpoint, config, recipes, calibration, Path(temporary), progress)
        source = None if checkpoint is None else CheckpointWeights(checkpoint)
        return _judge(source, found, config, ids, progress)


def _is_bundle(subject: str) -> bool:
    return (Path(subject) / MANIFEST_FILE).is_file()


def _open(
    subject: str, recipes: Sequence[str], reference: str | None
) -> tuple[Checkpoint | None, ModelConfig, Tokenizer]:
    """The source's checkpoint if it is at hand, the configuration, and the tokenizer."""
    for recipe in recipes:
        load_recipe(recipe)
    if not _is_bundle(subject):
        if reference is not None:
            raise InputError(f"{subject}: is no bundle, so it is its own reference; leave --reference out")
        checkpoint = open_checkpoint(subject)
        config = parse_config(checkpoint.config)
        check_tensors(checkpoint, config)
        return checkpoint, config, Tokenizer(checkpoint.tokenizer_files()["tokenizer.json"].decode("utf-8"))
    if recipes:
        raise InputError(f"{subject}: is quantised already; for other recipes name the model that it was made from")
    manifest = read_manifest(Path(subject))
    config, tokenizer = parse_config(manifest.config, manifest.context), load_tokenizer(Path(subject))
    if reference is None:
        return None, config, tokenizer
    checkpoint = open_checkpoint(reference)
    if parse_config(checkpoint.config, manifest.context) != config:
        raise InputError(f"{reference}: is not the model that {subject} was made from; their configurations differ")
    check_tensors(checkpoint, config)
    return checkpoint, config, tokenizer


def _bundle_weights(bundle: Path, config: ModelConfig) -> tuple[Weights, int]:
    """The weights read back out of a bundle's first artifact, and that artifact's size in bytes."""
    manifest = read_manifest(bundle)
    if not manifest.targets:
        raise InputError(f"{bundle}: holds no artifact; export again with --to")
    name = manifest.targets[0]
    size = sum(entry.size_bytes for path, entry in manifest.files.items() if path.startswith(name + "/"))
    return get_target(name).read_back(bundle / name, config).weights, size


def _quantised(
    checkpoint: Checkpoint,
    config: ModelConfig,
    recipes: Sequence[str],
    calibration: Path | None,
    folder: Path,
    progress: Progress,
) -> dict[str, tuple[Weights, int]]:
    """Canonical weights by each recipe, in files in the folder, and their sizes in bytes."""
    source = open_source(checkpoint, config, calibration)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    found: dict[str, tuple[Weights, int]] = {}
    for index, name in enumerate(dict.fromkeys(recipes)):
        recipe, path = fit_groups(load_recipe(name), shapes), folder / f"{index}.safetensors"
        weights, _, _ = write_canonical(source, recipe, path, progress)
        found[recipe.name] = weights, path.stat().st_size
    return found


def _judge(
    source: Weights | None,
    found: Mapping[str, tuple[Weights, int]],
    config: ModelConfig,
    ids: NDArray[np.int64],
    progress: Progress,
) -> Evaluation:
    sets: dict[str, Weights] = {name: weights for name, (weights, _) in found.items()}
    if source is not None:
        sets[_SOURCE] = source
    with progress(f"Reading {ids.size} tokens", quality_steps(len(sets), config, ids)) as step:
        quality = measure_quality(sets, config, ids, None if source is None else _SOURCE, step)
    layers: dict[str, Mapping[str, float]] = {}
    if source is not None:
        with progress("Comparing layers", len(found)) as step:
            for name, (weights, _) in found.items():
                layers[name] = layer_errors(source, weights, config, ids[:_LAYER_SEQUENCES])
                step()
    candidates = {name: Candidate(quality[name], size, layers.get(name)) for name, (_, size) in found.items()}
    return Evaluation(int(ids.size), len(ids), quality.get(_SOURCE), candidates)
