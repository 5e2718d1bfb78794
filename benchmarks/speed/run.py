"""How fast our artifacts are beside others', and what they keep of the model. Run: python benchmarks/speed/run.py

One interleaved run with equal threads and contexts: our ONNX and ExecuTorch artifacts, what onnxruntime-genai's own
builder makes (blocks of 32, int8 activations, 4-bit tables stored once, gate and up fused), and llama.cpp's Q4_0 and
Q4_K_M. Every runtime has a process of its own; they take turns. KL is that of the runtime's own logits to those of the
source in fp32, on text of the Brown corpus, fed token by token: weights, activations and cache together.

MODEL: smollm2-135m, or llama-3.2-1b, whose weights are random (so it has no KL, and its recipes are those that round
to nearest: calibration does not change speed). Files are made once in the folder. Prints Markdown; leaves JSON and,
where there is a KL, a chart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from peers import build_genai, gguf_of, quantise_gguf
from pocketlm import export
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.to_torch import reference_logits
from pocketlm.runtimes.bandwidth import measure_bandwidth
from pocketlm.runtimes.calibration import cut_sequences
from pocketlm.runtimes.judge import CheckpointWeights
from pocketlm.runtimes.svg import Labels, scatter
from pocketlm.runtimes.tokenizer import Tokenizer
from shared import brown, hugging_face_folder
from turns import System, Timed, Worker, take_turns

# Of each model: recipes, with the targets and the cache that they are written for.
BOTH = ("onnx", "executorch")
BUNDLES = {
    "smollm2-135m": (
        ("int4", BOTH, "float"), ("int4-g64", BOTH, "float"), ("int4-fast", BOTH, "float"),
        ("int4-fast", ("onnx",), "int8"),
    ),
    "llama-3.2-1b": (
        ("int4-rtn", BOTH, "float"), ("int4-fast-rtn", BOTH, "float"), ("int4-fast-rtn", ("onnx",), "int8"),
        ("g128.toml", ("onnx",), "float"),
    ),
}  # fmt: skip
G128 = 'base = "int4-g128-rtn"\nembedding = { kind = "int4", group = 128 }\n'  # 576 columns have no such groups
GENAI = {"block_size": "32", "accuracy_level": "4", "shared_embeddings": "true", "fuse_mlp_gate_up": "true"}
SMOLLM2 = "smollm2-135m"
SEQUENCES, LENGTH = 8, 256


def main() -> None:
    """Make, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=BUNDLES, default=SMOLLM2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 512, 2048])
    parser.add_argument("--new", type=int, default=64, help="tokens decoded behind each prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="names of systems")
    parser.add_argument("--kl-only", action="store_true", help="measure no speed")
    parser.add_argument("--folder", type=Path, default=Path("out/speed"))
    options = parser.parse_args()
    folder = options.folder / options.model
    folder.mkdir(parents=True, exist_ok=True)
    context = max(options.lengths) + 2 * options.new
    systems = [each for each in make_all(options.model, folder, context) if each.name in (options.only or [each.name])]
    kl = measure_kl(systems, folder, options.threads, context) if options.model == SMOLLM2 else {}
    if options.kl_only:
        return
    before = measure_bandwidth(options.threads).best
    timed = take_turns(systems, options.threads, context, options.lengths, options.new, options.rounds)
    bandwidth = max(before, measure_bandwidth(options.threads).best)
    rows = [row(each, options.lengths, options.new, kl, bandwidth) for each in timed]
    print_tables(rows, options.lengths, bandwidth)
    record = {"threads": options.threads, "new": options.new, "bandwidth": bandwidth, "rows": rows}
    (folder / "speed.json").write_text(json.dumps(record, indent=1))
    if kl:
        draw(rows, options.lengths, folder)


def make_all(model: str, folder: Path, context: int) -> Iterator[System]:
    """Every system's file, made if it is not there."""
    source = source_folder(model, folder)
    (folder / "g128.toml").write_text(G128)
    for recipe, targets, cache in BUNDLES[model]:
        name = recipe.removesuffix(".toml") + (" int8-cache" if cache == "int8" else "")
        bundle = folder / name.replace(" ", "-")
        if not bundle.is_dir():
            chosen = str(folder / recipe) if recipe.endswith(".toml") else recipe
            given = model if model == SMOLLM2 else str(source)
            export(given, bundle, to=targets, recipe=chosen, context=context, certify="identity", cache=cache)
        for target in targets:
            yield System(f"{name} {target}", target, bundle / target, size_of(bundle / target, "model*"))
    genai = folder / "genai"
    if not (genai / "genai_config.json").is_file():
        build_genai(source, genai, GENAI)
    yield System("onnxruntime-genai", "genai", genai, size_of(genai, "model.onnx*"))
    for method in ("Q4_0", "Q4_K_M"):
        path = folder / f"{method}.gguf"
        if not path.is_file():
            quantise_gguf(gguf_source(model, source, folder), path, method)
        yield System(f"llama.cpp {method}", "llama.cpp", path, path.stat().st_size)


def source_folder(model: str, folder: Path) -> Path:
    """The source as a folder of safetensors."""
    out = folder / "source"
    if model == SMOLLM2:
        return hugging_face_folder(open_checkpoint(model), out)
    if not (out / "config.json").is_file():
        script = Path(__file__).parents[1] / "big_models.py"
        subprocess.run([sys.executable, str(script), "make", model, str(out)], check=True)
    return out


def gguf_source(model: str, source: Path, folder: Path) -> Path:
    """The same weights as GGUF: what SmolLM2 comes as, or one that is written here."""
    shipped = open_checkpoint(SMOLLM2).files[0]
    if model == SMOLLM2:
        return shipped
    out = folder / "fp16.gguf"
    if not out.is_file():
        gguf_of(open_checkpoint(str(source)), shipped, out)
    return out


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of a system's files."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def measure_kl(systems: list[System], folder: Path, threads: int, context: int) -> dict[str, float]:
    """Each system's KL to the source; what earlier runs measured of the same files is taken from them."""
    ids, logits = folder / "ids.npy", folder / "logits.npy"
    if not logits.is_file():
        checkpoint = open_checkpoint(SMOLLM2)
        tokenizer = Tokenizer(checkpoint.tokenizer_files()["tokenizer.json"].decode())
        config = parse_config(checkpoint.config)
        text = brown(folder).read_text(encoding="utf-8")
        tokens = cut_sequences(text, tokenizer, config.max_position_embeddings, SEQUENCES, LENGTH)
        np.save(ids, tokens)
        np.save(logits, reference_logits(CheckpointWeights(checkpoint), config, tokens))
    record = folder / "kl.json"
    known: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    for system in systems:
        if _key(system) not in known:
            worker = Worker(system, threads, context)
            worker.answer()
            known[_key(system)] = worker.ask(f"kl {ids} {logits}")["kl"]
            worker.close()
            record.write_text(json.dumps(known, indent=1))
        print(f"{system.name}: KL {known[_key(system)]:.4f}", file=sys.stderr, flush=True)
    return {system.name: known[_key(system)] for system in systems}


def _key(system: System) -> str:
    """Names a system and its file as it is now: what was measured of it is not measured again."""
    files = [system.path] if system.path.is_file() else sorted(path for path in system.path.iterdir() if path.is_file())
    return f"{system.name} {max(path.stat().st_mtime_ns for path in files)} {system.size_bytes}"


def row(timed: Timed, lengths: list[int], new: int, kl: dict[str, float], bandwidth: float) -> dict[str, Any]:
    """One system's figures."""
    rates = {phase: {n: timed.rate(phase, n, new) for n in lengths} for phase in ("prefill", "decode")}
    return {
        "name": timed.system.name,
        "size_bytes": timed.system.size_bytes,
        "kl": kl.get(timed.system.name),
        **rates,
        "share_of_bandwidth": timed.system.size_bytes * rates["decode"][lengths[0]] / bandwidth,
        "load_seconds": timed.load_seconds,
        "peak_bytes": timed.peak_bytes,
        "seconds": {f"{phase} {n}": series for (phase, n), series in timed.seconds.items()},
    }


def print_tables(rows: list[dict[str, Any]], lengths: list[int], bandwidth: float) -> None:
    """Figures, and what they are relative to the peers'."""
    heads = [f"{phase} {n}" for phase in ("prefill", "decode") for n in lengths]
    print(f"tokens/s behind prompts of so many tokens; memory reads {bandwidth / 1e9:.1f} GB/s at best\n")
    print(f"| | MB | KL | {' | '.join(heads)} | GB/s share | peak MB |\n|{'---|' * (len(heads) + 5)}")
    for each in rows:
        kl = "" if each["kl"] is None else f"{each['kl']:.3f}"
        rates = [f"{each[phase][n]:.0f}" for phase in ("prefill", "decode") for n in lengths]
        share = f"{100 * each['share_of_bandwidth']:.0f} %"
        cells = [each["name"], f"{each['size_bytes'] / 1e6:.1f}", kl, *rates, share, f"{each['peak_bytes'] / 1e6:.0f}"]
        print(f"| {' | '.join(cells)} |")
    for peer in ("llama.cpp Q4_0", "onnxruntime-genai"):
        base = next((each for each in rows if each["name"] == peer), None)
        if base is None:
            continue
        print(f"\n| times {peer} | MB | KL | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 3)}")
        for each in rows:
            kl = "" if each["kl"] is None else f"{each['kl'] / base['kl']:.2f}"
            rates = [f"{times(each, base, f'{p} {n}'):.2f}" for p in ("prefill", "decode") for n in lengths]
            size = f"{each['size_bytes'] / base['size_bytes']:.2f}"
            print(f"| {' | '.join([each['name'], size, kl, *rates])} |")


def times(one: dict[str, Any], other: dict[str, Any], what: str) -> float:
    """How many times as fast, the median over rounds: both ran at the same hour in each."""
    return median(b / a for a, b in zip(one["seconds"][what], other["seconds"][what], strict=True))


def draw(rows: list[dict[str, Any]], lengths: list[int], folder: Path) -> None:
    """Decode speed against KL."""
    length = sorted(lengths)[len(lengths) // 2]
    labels = Labels(
        f"Decode speed behind {length} tokens against KL", "tokens per second", "KL to the source, nats, in the runtime"
    )
    points = {each["name"]: (each["decode"][length], each["kl"]) for each in rows}
    (folder / "speed_against_kl.svg").write_text(scatter(labels, points), encoding="utf-8")


if __name__ == "__main__":
    main()
