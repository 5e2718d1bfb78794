"""What in a package is known to keep it off the Neural Engine or to break on a device, each with where that is said.

Nothing here was measured by us: Core ML decides at load time, by rules that differ between chips and systems, and a
device has the last word (Xcode's performance report, or ``MLComputePlan``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..export import apple
from .mil_function import MilFunction
from .mil_package import MilPackage

_GUIDE = "https://apple.github.io/coremltools/docs-guides/source/"
_ISSUES = "https://github.com/apple/coremltools/issues/"
_ANE_GUIDE = "https://ane-guide.readthedocs.io/en/latest/part-5-practice/17-model-design-rules.html"


@dataclass(frozen=True)
class Rule:
    """What is known. ``effect``: "breaks", "leaves the Neural Engine", or "to know"."""

    name: str
    effect: str
    source: str


@dataclass(frozen=True)
class Finding:
    """A rule that a package meets, where, and what that means for it."""

    rule: Rule
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.effect}: {self.where}: {self.detail} ({self.rule.source})"


RANK = Rule("rank", "breaks", "coremltools, Program._check_invalid_tensor_rank: Core ML has no rank over 5")
FLEXIBLE = Rule("flexible shape", "leaves the Neural Engine", _ISSUES + "2370, " + _GUIDE + "flexible-inputs.html")
GATHER = Rule(
    "gather",
    "leaves the Neural Engine",
    "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md",
)
BLOCKS = Rule(
    "weights in blocks",
    "leaves the Neural Engine",
    _ISSUES + "2510, " + _GUIDE + "opt-quantization-perf.html (per-block on the GPU, per-channel on the Neural Engine)",
)
FP32 = Rule("fp32", "leaves the Neural Engine", _GUIDE + "typed-execution.html (it computes in fp16 only)")
WIDTH = Rule("width", "leaves the Neural Engine", _ANE_GUIDE + " (at most 16384 along width and height)")
STATE_SHAPE = Rule("state shape", "breaks", _ISSUES + "2631 (the Neural Engine refuses it)")
STATE_WRITE = Rule(
    "state write", "leaves the Neural Engine", "https://github.com/Anemll/Anemll/issues/27, " + _ISSUES + "2553"
)
FILE_SIZE = Rule("file size", "leaves the Neural Engine", _GUIDE + "mlmodel-utilities.html (at most 1 GB on an iPhone)")
HUGE_FILE = Rule(
    "huge file",
    "breaks",
    "https://github.com/antmikinka/AppleNeuralEngine-Kit, docs/ANE_MODEL_ARCHITECTURE.md (about 2 GB a file)",
)
STATE_SIZE = Rule("state size", "to know", _GUIDE + "stateful-models.html (a state lives as long as its conversation)")

_LARGEST_RANK = 5
_LARGEST_AXIS = 16384
_LARGEST_WRITE = 32  # tokens in one slice_update; 16 and 32 were seen to work, 128 not
_STATE_MULTIPLE = 32


def lint(path: Path) -> tuple[Finding, ...]:
    """Everything known about a package, worst first; raises InputError if it cannot be read."""
    package = MilPackage(path)
    findings = list(_about_files(package))
    for name in package.function_names:
        function = package.function(name)
        findings += [*_about_shapes(function), *_about_operations(function)]
    first = package.function(package.function_names[0])
    findings += [*_about_weights(first), *_about_states(first)]
    order = ("breaks", "leaves the Neural Engine", "to know")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.rule.effect)))


def _about_files(package: MilPackage) -> Iterator[Finding]:
    size = package.weights_path.stat().st_size
    if size > 2 << 30:
        yield Finding(HUGE_FILE, "weight.bin", f"{size / 1e9:.2f} GB of weights in one file; a smaller recipe helps")
    elif size > 1_000_000_000:
        yield Finding(FILE_SIZE, "weight.bin", f"{size / 1e9:.2f} GB of weights; a smaller recipe helps")


def _about_shapes(function: MilFunction) -> Iterator[Finding]:
    for name, shape in function.inputs.items():
        if -1 in shape:
            yield Finding(FLEXIBLE, f"{function.name}, {name}", "its shape is only known when it runs")
    for step in function.steps:
        for name, shape in zip(step.outputs, step.shapes, strict=True):
            if len(shape) > _LARGEST_RANK:
                yield Finding(RANK, f"{function.name}, {name}", f"rank {len(shape)}")
            floats = step.types[step.outputs.index(name)] in ("fp16", "fp32")
            if (
                floats
                and step.kind not in ("read_state", "coreml_update_state")
                and max(shape, default=0) > _LARGEST_AXIS
            ):
                yield Finding(WIDTH, f"{function.name}, {name}", f"an axis of {max(shape)}; this part runs elsewhere")


def _about_operations(function: MilFunction) -> Iterator[Finding]:
    gathers = [step for step in function.steps if step.kind == "gather"]
    if gathers:
        names = ", ".join(step.outputs[0] for step in gathers)
        yield Finding(GATHER, f"{function.name}, {names}", "rows picked at run time")
    wide = [
        step
        for step in function.steps
        if "fp32" in step.types
        and step.kind not in ("cast", "gather")  # rotary tables are fp32 until they are looked up
    ]
    if wide:
        kinds = ", ".join(sorted({step.kind for step in wide}))
        yield Finding(
            FP32, f"{function.name}, {wide[0].outputs[0]}", f"{len(wide)} operations compute in fp32: {kinds}"
        )
    tokens = function.inputs.get(apple.TOKENS, (1, 1))[-1]
    if tokens > _LARGEST_WRITE and any(step.kind == "slice_update" for step in function.steps):
        yield Finding(
            STATE_WRITE, function.name, f"{tokens} tokens are put into the cache at once; up to 32 were seen to work"
        )


def _about_weights(function: MilFunction) -> Iterator[Finding]:
    groups = [
        constant.group
        for constant in function.constants.values()
        if constant.group is not None and constant.group < constant.shape[1]
    ]
    if groups:
        sizes = " and ".join(map(str, sorted(set(groups))))
        yield Finding(
            BLOCKS,
            f"{len(groups)} weights",
            f"scales for blocks of {sizes} columns run on the GPU; the int8 recipe has one scale a row",
        )


def _about_states(function: MilFunction) -> Iterator[Finding]:
    total = 0
    for name, shape in function.states.items():
        total += 2 * prod(shape)
        odd = [size for size in shape[-2:] if size % _STATE_MULTIPLE]
        if odd:
            yield Finding(STATE_SHAPE, name, f"a dimension of {odd[0]} is no multiple of {_STATE_MULTIPLE}")
    if total:
        yield Finding(STATE_SIZE, ", ".join(function.states), f"{total / 1e6:.1f} MB for each conversation")
