"""A whole small bundle, what can be wrong with one, and logits to hold against its golden file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from golden.vectors import generated
from pocketlm.export.bundle import FileEntry, Manifest
from pocketlm.runtimes.chat_template import ChatTemplate, control_tokens
from pocketlm.runtimes.chat_turns import chat_turns
from pocketlm.runtimes.golden import expectation, replay_kl
from pocketlm.runtimes.tokenizer import Tokenizer
from transcripts import template_entry

_TOKENIZER = "smollm2"
_TEMPLATE = "SmolLM2"
_PROMPT = "What is the capital of France?"
_LENGTH = 24  # tokens of each golden sequence
_KEPT = 4  # positions with expected logits
_SEQUENCES = 2
_SCALE = 14.0  # gives logits about as peaked as a small model's


def good_bundle(tokenizers: Mapping[str, str]) -> dict[str, str]:
    """Path -> text. Its onnx/model.onnx is a line of text: runtimes must refuse it, everything else is as exported."""
    content = tokenizers[_TOKENIZER]
    tokenizer, entry = Tokenizer(content), template_entry(_TEMPLATE)
    template = ChatTemplate(entry["template"], entry["special_tokens"])
    turns, _ = chat_turns(template.render)
    assert turns is not None
    turns["control"] = list(control_tokens(tokenizer, template))
    vocab_size = 1 + max(entry["id"] for entry in json.loads(content)["added_tokens"])
    stop = tokenizer.token_id("<|im_end|>")
    files = {
        "tokenizer.json": content,
        "tokenizer_config.json": _text({"tokenizer_class": "PreTrainedTokenizerFast"} | entry["special_tokens"]),
        "chat_template.jinja": entry["template"],
        "chat_turns.json": _text(turns),
        "generation_config.json": _text({"eos_token_id": stop}),
        "golden.json": _text(_golden(tokenizer, vocab_size)),
        "onnx/model.onnx": "This is no model: the bundle tests what is read before a model is.\n",
    }
    return files | {"pocketlm.json": _text(_manifest(files, vocab_size, stop), indent=1)}


def _text(content: object, indent: int | None = None) -> str:
    return json.dumps(content, indent=indent) + "\n"


def _manifest(files: Mapping[str, str], vocab_size: int, stop: int | None) -> dict[str, Any]:
    assert stop is not None
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": 64,
        "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    error = {"kl": 0.25, "top1": 0.75, "max_abs_logit": 3.5, "perplexity_ratio": 1.1}
    certificate = {
        "passed": True, "weights_identical": True, "tensors_checked": 15, "constants_checked": 40,
        "positions": 2 * (_LENGTH - 8 + 1), "quantization": error,
        "conversion": {"kl": 1.5e-11, "top1": 1.0, "max_abs_logit": 5e-05},
        "activation": {"kl": 0.004, "top1": 0.97, "max_abs_logit": 0.9},
        "runtime": {"kl": 0.005, "top1": 0.96, "max_abs_logit": 1.1, "noise_floor_kl": 0.0045},
        "total": error, "failures": [], "evaluated_by": "written by hand", "notes": [], "lint": [],
        "size_bytes": len(files["onnx/model.onnx"]), "seconds": 1.0,
    }  # fmt: skip
    manifest = Manifest(
        pocketlm="0.1.0",
        name="tiny",
        source={"model.safetensors": FileEntry(1000, "0" * 64)},
        config=config,
        recipe={"name": "int4", "rules": {}},
        context=128,
        stop_tokens=(stop,),
        licence="Apache-2.0",
        weights={"model.norm.weight": {"format": "float32 64", "values": "1" * 64}},
        quantization={"model.embed_tokens.weight": 0.01},
        notes=("written by hand for tests",),
        files={name: _entry(text) for name, text in sorted(files.items())},
        certificate={"passed": True, "targets": {"onnx": certificate}},
    )
    return asdict(manifest)


def _entry(text: str) -> FileEntry:
    data = text.encode("utf-8")
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def _golden(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Tokens of a prompt, and of prose; logits that no model gave."""
    texts = (
        f"{_PROMPT} The capital of France is Paris. What else is there to say?",
        "She had been forced into prudence in her youth.",
    )
    rows = [(tokenizer.encode(text * 3, special=False))[:_LENGTH] for text in texts]
    prefill = 8
    return {
        "schema_version": 1,
        "prefill": prefill,
        "prose": 1,
        "first": _LENGTH - _KEPT,
        "sequences": [
            {"prompt": text, "tokens": tokens, "continuation": tokenizer.decode(tokens[prefill:])}
            for text, tokens in zip((_PROMPT, ""), rows, strict=True)
        ],
        "targets": {"onnx": expectation(_logits(vocab_size, _rows()), 0.01)},
    }


def _rows(noise: float = 0.0) -> list[list[list[list[float]]]]:
    """Per sequence and kept position, the rows of ``generated``."""
    return [
        [[[1 + s * _KEPT + p, _SCALE]] + [[100 + s * _KEPT + p, noise]] * (noise > 0) for p in range(_KEPT)]
        for s in range(_SEQUENCES)
    ]


def _logits(size: int, rows: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Any:
    return np.array([[generated(position, size) for position in sequence] for sequence in rows], np.float32)


def replays(bundle: Mapping[str, str]) -> dict[str, Any]:
    """Logits behind the kept positions of bundle/good/golden.json, as rows, and their KL in nats."""
    golden = json.loads(bundle["golden.json"])
    size = json.loads(bundle["pocketlm.json"])["config"]["vocab_size"]
    target = golden["targets"]["onnx"]
    cases = []
    for name, rows in (
        ("the same", _rows()),
        ("another rounding", _rows(0.001)),
        ("within the tolerance", _rows(0.5)),
        ("beyond the tolerance", _rows(2.0)),
        ("flat", [[[[1, 0.0]]] * _KEPT] * _SEQUENCES),
        ("sequences exchanged", _rows()[::-1]),
    ):
        kl = replay_kl(target["expected"], _logits(size, rows))
        cases.append({"name": name, "rows": rows, "kl": kl, "passes": bool(kl <= target["tolerance_kl"])})
    assert [case["passes"] for case in cases] == [True, True, True, False, False, False]
    return {"vocab_size": size, "target": "onnx", "cases": cases}


def broken_bundles(bundle: Mapping[str, str]) -> list[dict[str, Any]]:
    """What to change in bundle/good, and words that the one line about it must contain, in any order.

    {"name", "manifest": a JSON merge patch (RFC 7396) of pocketlm.json, "files": path -> text, or null to remove it,
    "words"}. Hashes are those of the good bundle.
    """
    manifest = json.loads(bundle["pocketlm.json"])
    evil = {"size_bytes": 1, "sha256": "0" * 64}
    longer = bundle["golden.json"].replace('"prefill": 8', '"prefill": 9')
    return [
        {"name": "no manifest", "files": {"pocketlm.json": None}, "words": ["not a bundle", "pocketlm.json"]},
        {"name": "manifest cut off", "files": {"pocketlm.json": bundle["pocketlm.json"][:200]}, "words": ["damaged"]},
        {"name": "manifest is a list", "files": {"pocketlm.json": "[]\n"}, "words": ["damaged"]},
        {"name": "manifest is empty", "files": {"pocketlm.json": ""}, "words": ["damaged"]},
        {"name": "newer schema", "manifest": {"schema_version": 2}, "words": ["schema version 2"]},
        {"name": "no schema", "manifest": {"schema_version": None}, "words": ["damaged"]},
        {"name": "schema is text", "manifest": {"schema_version": "1"}, "words": ["schema version 1"]},
        {"name": "no context", "manifest": {"context": None}, "words": ["damaged"]},
        {"name": "context is text", "manifest": {"context": "128"}, "words": ["damaged"]},
        {"name": "files is a list", "manifest": {"files": ["a"]}, "words": ["damaged"]},
        {"name": "no hash", "manifest": {"files": {"tokenizer.json": {"sha256": None}}}, "words": ["damaged"]},
        {"name": "stop tokens are text", "manifest": {"stop_tokens": ["a"]}, "words": ["damaged"]},
        {"name": "certificate is text", "manifest": {"certificate": "passed"}, "words": ["damaged"]},
        {"name": "a path upwards", "manifest": {"files": {"../x": evil}}, "words": ["../x", "leaves the bundle"]},
        {"name": "an absolute path", "manifest": {"files": {"/etc/x": evil}}, "words": ["/etc/x", "leaves the bundle"]},
        {"name": "a file is missing", "files": {"golden.json": None}, "words": ["golden.json"]},
        {"name": "the model is missing", "files": {"onnx/model.onnx": None}, "words": ["onnx/model.onnx"]},
        {"name": "a file was changed", "files": {"golden.json": longer}, "words": ["golden.json", "changed"]},
        {
            "name": "a file was changed, size and all",
            "files": {"chat_turns.json": bundle["chat_turns.json"] + " "},
            "words": ["chat_turns.json", "changed"],
        },
        {
            "name": "no artifact",
            "manifest": {"files": dict.fromkeys(name for name in manifest["files"] if "/" in name)},
            "words": ["holds no artifact"],
        },
    ]


def device_results() -> dict[str, Any]:
    """What an app writes for figures that its tests make up: a prompt takes 1 s, a token 0.125 s, loading 2 s."""
    reading = {"battery_milliamperes": -350.0, "temperature_celsius": 31.5, "thermal_status": "none"}
    run = {"prefill_tokens_per_second": 20.0, "decode_tokens_per_second": 8.0, "time_to_first_token_seconds": 1.0}
    windows = [{"at_seconds": at, "decode_tokens_per_second": 8.0, "reading": reading} for at in (2.25, 4.5)]
    target = {
        "first_load_seconds": 2.0,
        "later_load_seconds": 2.0,
        **run,
        "peak_memory_bytes": 123,
        "runtime": "scripted",
        "runs": [run, run],
        "before": reading,
        "after": reading,
        "sustained": windows,
    }
    replay = {"tolerance_kl": 0.01, "positions": 64, "seconds": 3.0}
    return {
        "schema_version": 1,
        "kind": "device",
        "device": {
            "platform": "android", "model": "Phone 1", "system": "Android 14 (API 34)", "abi": "arm64-v8a", "cores": 8,
            "memory_bytes": 8_000_000_000,
        },
        "bundle": {"name": "tiny", "manifest_sha256": "ab" * 32},
        "verify": {"onnx": {"kl": 0.004, **replay, "passed": True}, "executorch": {**replay, "passed": False}},
        "bench": {"prompt_tokens": 20, "new_tokens": 10, "threads": 4, "targets": {"onnx": target}},
    }  # fmt: skip
