"""`pocketlm plan`: what an export would give, from the model's configuration alone and before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..export.caches import target_cache
from ..export.canonical import check_formats, check_patterns, fit_groups
from ..export.config import DEFAULT_CONTEXT, ModelConfig, parse_config
from ..export.open_checkpoint import open_checkpoint
from ..export.shapes import tensor_shapes
from ..quantize.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from .devices import Device, read_devices
from .memory_need import PROCESS, check_memory
from .plan_device import Artifact, DevicePlan, plan_device
from .plan_memory import ExportCost, Memory, export_cost, phone_memory, planned_subject
from .plan_model import Description, describe_model, download_bytes
from .plan_sizes import artifact_bytes
from .plan_storage import Stored, describe_storage, weight_values
from .thresholds import limits

TARGET_NAMES = ("onnx", "executorch", "coreml")
# Shown where nobody names a device: old and new, small and large, of both kinds.
USUAL = (
    "galaxy-a02s", "galaxy-a13", "galaxy-a15", "pixel-7", "galaxy-s24", "galaxy-s25", "iphone-12", "iphone-15-pro",
    "iphone-17-pro", "macbook-air-m2",
)  # fmt: skip


@dataclass(frozen=True)
class TargetPlan:
    """One target's artifact: bytes of its folder, and what it takes on a phone."""

    artifact_bytes: int
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """What ``plan`` says.

    parameters  values of all weights, each once
    export      peak memory and time of the export itself, verified as ``certify`` says
    targets     by name
    devices     one for each device and target asked for that go together
    """

    model: str
    recipe: str
    context: int
    cache: str
    parameters: int
    download_bytes: int
    download_exact: bool
    export: ExportCost
    targets: Mapping[str, TargetPlan]
    devices: tuple[DevicePlan, ...]
    certify: str = "full"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        targets = {
            name: {
                "artifact_bytes": target.artifact_bytes,
                "memory_bytes": asdict(target.memory) | {"total": target.memory.total},
            }
            for name, target in self.targets.items()
        }
        return asdict(self) | {"targets": targets, "devices": [device.to_json() for device in self.devices]}


@dataclass(frozen=True)
class _Shapes:
    """A checkpoint without files, for the checks that a recipe has to pass."""

    shapes: Mapping[str, tuple[int, ...]]
    stored: str

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def kind(self, name: str) -> str:
        return self.stored


def plan(
    model: str,
    *,
    devices: Sequence[str] = (),
    recipe: str = DEFAULT_RECIPE,
    context: int | None = None,
    to: Sequence[str] = TARGET_NAMES,
    cache: str = "float",
) -> Plan:
    """Sizes, memory, speed and verdicts for a model, a recipe, a context and targets; see ``describe_model``.

    cache    "float" or "int8", as for ``export``
    devices  their keys in devices.toml; none: a few usual ones, each with the first target that it can run

    Raises InputError for a model, recipe, context, cache or device that an export or this plan cannot take.
    """
    return _plan(model, devices, recipe, context, to, cache, "full", None)


def dry_run(
    model: str,
    *,
    recipe: str = DEFAULT_RECIPE,
    context: int | None = None,
    to: Sequence[str] = ("onnx",),
    cache: str = "float",
    adapters: Sequence[str] = (),
    max_memory: int | None = None,
    certify: str = "full",
) -> Plan:
    """What ``export`` with the same parameters would give, cost, or refuse; see ``plan``.

    An adapter is held to the model's own tensors, so that they must be here; nothing is downloaded for it.
    """
    if adapters:
        if not os.path.exists(os.path.expanduser(model)):
            raise InputError("an adapter is held to the model's tensors: no --dry-run of --adapter without its files")
        open_checkpoint(model, adapters)
    return _plan(model, (), recipe, context, to, cache, certify, max_memory)


def _plan(
    model: str,
    devices: Sequence[str],
    recipe: str,
    context: int | None,
    to: Sequence[str],
    cache: str,
    certify: str,
    max_memory: int | None,
) -> Plan:
    chosen = load_recipe(recipe)
    limits(chosen.thresholds)
    for name in to:
        target_cache(name, cache)
    known = read_devices()
    for key in devices:
        if key not in known:
            raise InputError(f"no device {key!r}; there are {', '.join(known)}")
    description = describe_model(model)
    config = _config(model, description, context)
    chosen = fit_groups(chosen, tensor_shapes(config))
    tokens = context or min(DEFAULT_CONTEXT, config.max_position_embeddings)
    stored = _store(description, config, chosen, tokens, cache)
    subject = planned_subject(_Shapes(stored.shapes, description.stored_as), stored)
    if max_memory is not None:
        check_memory(subject, tuple(dict.fromkeys(to)), max_memory, certify, False, PROCESS)
    targets = {
        name: TargetPlan(artifact_bytes(name, stored, description.tokenizer_bytes), phone_memory(name, stored))
        for name in dict.fromkeys(to)
    }
    artifacts = {name: Artifact(name, stored) for name in targets}
    pairs = [(known[key], name) for key in devices or USUAL for name in _runnable(known[key], tuple(targets))]
    return Plan(
        model=model,
        recipe=chosen.name,
        context=stored.context,
        cache=cache,
        parameters=weight_values(stored),
        download_bytes=download_bytes(description, config),
        download_exact=description.download_exact,
        export=export_cost(subject, tuple(targets), certify),
        certify=certify,
        targets=targets,
        devices=tuple(
            plan_device(device, artifacts[name]) for device, name in (pairs if devices else _one_target_each(pairs))
        ),
    )


def _config(model: str, description: Description, context: int | None) -> ModelConfig:
    limit = parse_config(description.raw).max_position_embeddings
    if context is not None and not 2 <= context <= limit:
        raise InputError(f"a context of {context} is out of range: {model} was made for 2 to {limit} tokens")
    return parse_config(description.raw, context or min(DEFAULT_CONTEXT, limit))


def _store(description: Description, config: ModelConfig, recipe: Recipe, context: int, cache: str) -> Stored:
    """Raises InputError for a recipe that does not fit the model, as an export would."""
    stored = describe_storage(config, recipe, context, description.biases(config), cache)
    shapes: Any = _Shapes(stored.shapes, description.stored_as)
    check_formats(shapes, list(stored.shapes), recipe)
    check_patterns(shapes, list(stored.shapes), recipe)
    return stored


def _runnable(device: Device, targets: Sequence[str]) -> list[str]:
    """Those of the targets that a device has a runtime for, the one that suits it best first."""
    apple = device.chip.key.startswith("apple-")
    order = ("coreml", "executorch", "onnx") if apple else ("onnx", "executorch")
    return [name for name in order if name in targets]


def _one_target_each(pairs: Sequence[tuple[Device, str]]) -> list[tuple[Device, str]]:
    first: dict[str, tuple[Device, str]] = {}
    for device, name in pairs:
        first.setdefault(device.key, (device, name))
    return list(first.values())
