"""Big models through a small machine: time and peak memory of quantising and writing them. Random weights, true shapes.

    python benchmarks/big_models.py make phi-3-mini FOLDER        # 7.6 GB; llama-3-8b: 16 GB, llama-3.2-1b: 2.5 GB
    python benchmarks/big_models.py measure FOLDER [--targets onnx coreml executorch]
    python benchmarks/big_models.py export FOLDER [--max-memory 1.5GB] [--certify identity]

``make`` writes config.json as published, shards of safetensors as transformers splits them, and a small tokenizer whose
ids lie within the vocabulary. ``measure`` runs each target in a process of its own and prints a Markdown table; ``cp``
is what copying the checkpoint takes, by the system's own command. ``export`` does the same with the whole command, from
its start to the end of its process, whose memory is watched from outside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from export_cost import LOWER, measure
from pocketlm.runtimes.memory_limit import status_bytes

SHARD_BYTES = 5_000_000_000
CONFIGS = Path(__file__).parents[1] / "tests" / "data" / "configs"
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 128256,
}  # fmt: skip


def published_config(name: str) -> dict[str, Any]:
    """config.json of a model, as published; the code that Phi-3's names is transformers' own by now."""
    if name == "llama-3-8b":
        return dict(LLAMA_3_8B)
    file = "phi-3-mini-4k.json" if name == "phi-3-mini" else f"{name}.json"
    config: dict[str, Any] = json.loads((CONFIGS / file).read_text())
    return {key: value for key, value in config.items() if key != "auto_map"}


def stored_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the model's files have them."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    if config["model_type"] == "phi3":
        linears = {"self_attn.qkv_proj": (queries + 2 * keys, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
    else:
        linears = {
            f"self_attn.{part}_proj": (rows, hidden) for part, rows in zip("qkv", (queries, keys, keys), strict=True)
        }
        linears |= {f"mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
    linears |= {"self_attn.o_proj": (hidden, queries), "mlp.down_proj": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{prefix}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    head = {} if config.get("tie_word_embeddings") else {"lm_head.weight": (vocab, hidden)}
    return shapes | {"model.norm.weight": (hidden,)} | head


def random_rows(shape: tuple[int, ...], kind: str, seed: int) -> Iterator[np.ndarray]:
    """Normal weights of a standard deviation that keeps activations in range, as raw fp16 or bf16; norms near 1."""
    generator = np.random.Generator(np.random.SFC64(seed))
    rows = max(1, (1 << 22) // prod(shape[1:]))
    for start in range(0, shape[0], rows):
        part = generator.standard_normal((min(rows, shape[0] - start), *shape[1:]), np.float32)
        part *= np.float32(0.02)
        if len(shape) == 1:
            part += 1
        yield part.astype(np.float16) if kind == "F16" else (part.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def make(name: str, folder: Path, layers: int | None, kind: str) -> None:
    """Write a model of the published shape into ``folder``."""
    config = published_config(name)
    config |= {"torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[kind]}
    config |= {} if layers is None else {"num_hidden_layers": layers}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, config)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for tensor, shape in stored_shapes(config).items():
        if 2 * sum(map(prod, (*shards[-1].values(), shape))) > SHARD_BYTES:
            shards.append({})
        shards[-1][tensor] = shape
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shard, kind, number)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(2 * sum(map(prod, shard.values())) for shard in shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": places}))


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], kind: str, number: int) -> None:
    """One file of safetensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for seed, shape in enumerate(shapes.values(), 1000 * number):
            for part in random_rows(shape, kind, seed):
                file.write(part.data)


def write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """Bytes as tokens: nothing is measured that depends on the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))


def seconds_to_copy(folder: Path) -> float:
    """What `cp` takes for the checkpoint, until the system has taken the bytes."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        started = time.perf_counter()
        subprocess.run(["cp", "-r", str(folder), copy], check=True)
        return time.perf_counter() - started


def measure_all(folder: Path, targets: list[str], recipe: str) -> None:
    """Print a table of what each target costs."""
    copying = seconds_to_copy(folder)
    print(
        f"cp: {copying:.1f} s\n\n| target | quantise, s | write, s | together / cp | peak MB |\n|---|---|---|---|---|"
    )
    tempfile.tempdir = str(folder.parent)  # artifacts go where there is room for the checkpoint
    for target in targets:
        quantise, write, peak = measure(LOWER, str(folder), recipe, target)
        both = quantise + write
        print(f"| {target} | {quantise:.1f} | {write:.1f} | {both / copying:.1f} | {peak / 1e6:.0f} |", flush=True)


def export_all(folder: Path, targets: list[str], recipe: str, max_memory: str, certify: str) -> None:
    """Print a table of what `pocketlm export` costs for each target, with what it says of its phases."""
    copying = seconds_to_copy(folder)
    print(f"cp: {copying:.1f} s\n\n| target | export, s | / cp | peak MB of the process | phases |")
    print("|---|---|---|---|---|", flush=True)
    for target in targets:
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            command = [sys.executable, "-m", "pocketlm", "export", str(folder), "-o", f"{place}/bundle", "--to", target]
            command += ["--recipe", recipe, "--max-memory", max_memory, "--certify", certify, "--json"]
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            peak = watch_memory(process)
            seconds = time.perf_counter() - started
            assert process.stdout is not None
            if process.returncode:
                sys.exit(process.returncode)
            phases = json.loads(process.stdout.read())["peak_memory_by_phase"]
        told = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in phases.items())
        print(f"| {target} | {seconds:.1f} | {seconds / copying:.1f} | {peak / 1e6:.0f} | {told} |", flush=True)


def watch_memory(process: subprocess.Popen[str]) -> int:
    """Wait for a process that prints little; its peak resident memory, bytes.

    It forgets its own maximum between phases, so that is looked at all the time.
    """
    peak = 0
    while process.poll() is None:
        peak = max(peak, status_bytes(str(process.pid), "VmHWM"))
        time.sleep(0.02)
    return peak


def main() -> None:
    """Make a model, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "measure", "export"))
    parser.add_argument("rest", nargs="+", metavar="[NAME] FOLDER")
    parser.add_argument("--layers", type=int, help="fewer than published, to try things out")
    parser.add_argument("--kind", choices=("F16", "BF16"), default="BF16")
    parser.add_argument("--targets", nargs="+", default=["onnx", "coreml", "executorch"])
    parser.add_argument("--recipe", default="int4-rtn")
    parser.add_argument("--max-memory", default="1.5GB")
    parser.add_argument("--certify", default="identity")
    options = parser.parse_args()
    folder = Path(options.rest[-1]).resolve()
    if options.action == "make":
        if shutil.disk_usage(folder.parent).free < 30 * 10**9 and options.layers is None:
            parser.error("30 GB of free disk are wanted")
        make(options.rest[0], folder, options.layers, options.kind)
    elif options.action == "export":
        export_all(folder, options.targets, options.recipe, options.max_memory, options.certify)
    else:
        measure_all(folder, options.targets, options.recipe)


if __name__ == "__main__":
    main()
