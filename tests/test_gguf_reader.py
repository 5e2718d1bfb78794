"""GGUF files against transformers' loader, the gguf package's quantisers, and ggml's arithmetic written out."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.export.check import check_tensors
from pocketlm.export.config import parse_config
from pocketlm.export.gguf_config import find_llama3_scaling
from pocketlm.export.gguf_reader import GgufReader, hugging_face_name
from pocketlm.export.rope import Llama3Scaling, Rope, inverse_frequencies
from pocketlm.export.safetensors_reader import SafetensorsReader
from tiny import LLAMA3_ROPE, tiny_gguf, tiny_llama

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}


def transformers_state(path: Path) -> dict[str, np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"attention_bias": True, "mlp_bias": True, "rope": LLAMA3_ROPE},
        {"rope": LINEAR_ROPE, "hidden": 96, "heads": 6, "kv_heads": 3, "layers": 1},
    ],
)
def test_gives_back_the_folder_it_was_made_from(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = SafetensorsReader(tiny_llama(tmp_path, **options))
    reader = GgufReader(tiny_gguf(tmp_path / "a.gguf", tmp_path))
    assert set(reader.names()) == set(folder.names())
    for name in folder.names():
        assert reader.shape(name) == folder.shape(name)
        np.testing.assert_array_equal(reader.read(name), folder.read(name))
    config = parse_config(reader.config)
    assert config == parse_config(folder.config)
    given = {key: value for key, value in reader.config.items() if key not in ("architectures",)}
    assert given == {key: folder.config[key] for key in given}
    check_tensors(reader, config)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_equals_transformers_for_every_type_that_can_be_written(tmp_path: Path, kind: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path), kind, output__weight="Q8_0")
    expected = transformers_state(path)
    reader = GgufReader(path)
    assert set(reader.names()) == set(expected)
    assert reader.kind("model.layers.0.mlp.up_proj.weight") == kind
    for name in reader.names():
        np.testing.assert_array_equal(reader.read(name), expected[name])


# The three below follow dequantize_row_q?_K in ggml-quants.c, one value after the other.


def scale_and_minimum(packed: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)


def q4_k(block: bytes) -> list[float]:
    d, minimum = struct.unpack("<2e", block[:4])
    scales, quants = block[4:16], block[16:]
    values = []
    for i in range(256):
        byte = quants[i // 64 * 32 + i % 32]
        scale, offset = scale_and_minimum(scales, i // 32)
        values.append(d * scale * (byte >> 4 if i % 64 >= 32 else byte & 15) - minimum * offset)
    return values


def q5_k(block: bytes) -> list[float]:
    d, minimum = struct.unpack("<2e", block[:4])
    scales, high, quants = block[4:16], block[16:48], block[48:]
    values = []
    for i in range(256):
        byte = quants[i // 64 * 32 + i % 32]
        low = byte >> 4 if i % 64 >= 32 else byte & 15
        scale, offset = scale_and_minimum(scales, i // 32)
        values.append(d * scale * (low + 16 * (high[i % 32] >> (i // 32) & 1)) - minimum * offset)
    return values


def q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack("<16b", block[192:208])
    (d,) = struct.unpack("<e", block[208:])
    values = []
    for i in range(256):
        half, within = divmod(i, 128)
        quarter, place = divmod(within, 32)
        nibble = low[half * 64 + quarter % 2 * 32 + place] >> (quarter // 2 * 4) & 15
        bits = high[half * 32 + place] >> (quarter * 2) & 3
        values.append(d * scales[i // 16] * ((nibble | bits << 4) - 32))
    return values


def embedding_only(path: Path, kind: str, rows: list[bytes]) -> GgufReader:
    """A file whose only tensor, the embedding, has these bytes."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    raw = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufReader(path)


@pytest.mark.parametrize(
    ("kind", "size", "scalars", "reference"),
    [("Q4_K", 144, (0, 2), q4_k), ("Q5_K", 176, (0, 2), q5_k), ("Q6_K", 210, (208,), q6_k)],
)
def test_k_quants(
    tmp_path: Path, kind: str, size: int, scalars: tuple[int, ...], reference: Callable[[bytes], list[float]]
) -> None:
    rng = random.Random(0)
    rows = []
    for _ in range(5):
        row = bytearray(rng.randbytes(size))
        for place in scalars:
            row[place : place + 2] = struct.pack("<e", rng.uniform(-0.1, 0.1))
        rows.append(bytes(row))
    values = embedding_only(tmp_path / "a.gguf", kind, rows).read("model.embed_tokens.weight")
    np.testing.assert_allclose(values, [reference(row) for row in rows], rtol=1e-6, atol=1e-7)


def test_literal_bytes(tmp_path: Path) -> None:
    row = struct.pack("<e", 0.5) + bytes(range(16))  # Q4_0: 0.5 * (low nibble - 8), then 0.5 * (high nibble - 8)
    values = embedding_only(tmp_path / "a.gguf", "Q4_0", [row * 8]).read("model.embed_tokens.weight")
    np.testing.assert_array_equal(values[0, :16], np.arange(-4, 4, 0.5))
    np.testing.assert_array_equal(values[0, 16:32], np.full(16, -4))
    row = struct.pack("<ee", 2.0, -1.0) + bytes([0xF0] * 16)  # Q4_1: 2 * nibble - 1
    values = embedding_only(tmp_path / "a.gguf", "Q4_1", [row * 8]).read("model.embed_tokens.weight")
    np.testing.assert_array_equal(values[0, :32], [-1] * 16 + [29] * 16)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_not_finite_values_name_the_tensor(tmp_path: Path, scale: float) -> None:
    reader = embedding_only(tmp_path / "a.gguf", "Q4_0", [(struct.pack("<e", scale) + bytes(16)) * 8])
    with pytest.raises(InputError, match=r"tensor model\.embed_tokens\.weight holds NaN or infinite"):
        reader.read("model.embed_tokens.weight")


LLAMA_3_2 = Rope(500000.0, llama3=Llama3Scaling(32.0, 1.0, 4.0, 8192))


def factors_of(rope: Rope, head_dim: int) -> np.ndarray:
    """rope_freqs.weight as convert_hf_to_gguf.py computes it, in double precision."""
    assert rope.llama3 is not None
    s = rope.llama3
    wavelengths = 2 * np.pi * rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (s.original_max_position_embeddings / wavelengths - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / s.factor + smooth)).astype(np.float32)


@pytest.mark.parametrize(
    ("rope", "head_dim"),
    [(LLAMA_3_2, 64), (replace(LLAMA_3_2, llama3=Llama3Scaling(8.0, 1.0, 4.0, 8192)), 128)],
    ids=["Llama-3.2-1B", "Llama-3.1-8B"],
)
def test_llama3_scaling_of_the_published_models(rope: Rope, head_dim: int) -> None:
    assert find_llama3_scaling(rope.theta, head_dim, factors_of(rope, head_dim)) == rope.llama3


@settings(deadline=None, max_examples=60)
@given(
    factor=st.sampled_from([2.0, 4.0, 8.0, 16.0, 32.0]),
    context=st.sampled_from([2048, 4096, 8192, 32768]),
    theta=st.sampled_from([10000.0, 100000.0, 500000.0]),
    head_dim=st.sampled_from([32, 64, 128]),
)
def test_llama3_scaling_computes_the_same_frequencies(factor: float, context: int, theta: float, head_dim: int) -> None:
    rope = Rope(theta, llama3=Llama3Scaling(factor, 1.0, 4.0, context))
    found = find_llama3_scaling(theta, head_dim, factors_of(rope, head_dim))
    np.testing.assert_allclose(
        inverse_frequencies(Rope(theta, llama3=found), head_dim), inverse_frequencies(rope, head_dim), rtol=5e-6
    )


@pytest.mark.parametrize("factors", [np.linspace(1, 9, 32), np.ones(31) * 2, -factors_of(LLAMA_3_2, 64)])
def test_other_rope_factors_are_refused(factors: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"rope_freqs\.weight"):
        find_llama3_scaling(500000.0, 64, factors.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(4), "llama.expert_count = 4 is not supported"),
        (lambda w: w.add_sliding_window(64), "llama.attention.sliding_window = 64"),
        (lambda w: w.add_logit_scale(2.0), "llama.logit_scale"),
        (lambda w: w.add_rope_scaling_type(rope_scaling("YARN")), "rope scaling 'yarn' is not supported"),
    ],
)
def test_keys_that_change_the_computation_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], message: str
) -> None:
    import gguf

    finish = gguf.GGUFWriter.write_header_to_file

    def with_change(writer: gguf.GGUFWriter) -> None:
        change(writer)
        finish(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_change)
    with pytest.raises(InputError) as caught:
        GgufReader(tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), 4.0),
        (lambda w: w.add_rope_scaling_factor(4.0), 4.0),
        (lambda w: (w.add_rope_scaling_type(rope_scaling("NONE")), w.add_rope_scaling_factor(4.0)), 1.0),
    ],
)
def test_scaling_as_older_files_state_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], factor: float
) -> None:
    """As llama.cpp's llama_model::load_hparams reads it: a file without a type of scaling means linear."""
    import gguf

    finish = gguf.GGUFWriter.write_header_to_file

    def with_change(writer: gguf.GGUFWriter) -> None:
        change(writer)
        finish(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_change)
    reader = GgufReader(tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path)))
    rope = parse_config(reader.config).layers[0].attention.rope
    assert rope is not None
    assert rope.linear_factor == factor


def rope_scaling(name: str) -> Any:
    import gguf

    return gguf.RopeScalingType[name]


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", tiny_llama(tmp_path))
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(InputError, match="architecture 'mamba' is not supported; supported are: llama"):
        GgufReader(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for path, message in (tmp_path, "cannot be opened"), (tmp_path / "no.gguf", "No such"), ("empty.gguf", "is empty"):
        with pytest.raises(InputError, match=message):
            GgufReader(tmp_path / path)


def test_names_that_are_not_known_stay() -> None:
    assert hugging_face_name("blk.3.ffn_down.bias") == "model.layers.3.mlp.down_proj.bias"
    for name in "blk.0.attn_sinks.weight", "cls.weight", "weight", "blk.0.0.attn_q.weight":
        assert hugging_face_name(name) == name


def test_damage_anywhere_in_a_model_gives_one_clear_error(tmp_path: Path) -> None:
    folder = tiny_llama(
        tmp_path, hidden=32, intermediate=32, heads=2, kv_heads=1, head_dim=16, layers=1, vocab=300, rope=LLAMA3_ROPE
    )
    path = tiny_gguf(tmp_path / "a.gguf", folder, "Q8_0")
    sound = path.read_bytes()
    header_size = len(sound) - sum(info.size_bytes for info in GgufReader(path)._tensors.values())
    rng = random.Random(0)
    outcomes = {"used": 0, "refused": 0}
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 1, 3])):
            place = rng.randrange(header_size - 8)
            value = rng.choice([0, 1, 2**16, 2**31, 2**32, 2**60, 2**64 - 1, rng.randrange(2**64)])
            length = rng.choice([1, 1, 4, 8])
            damaged[place : place + length] = struct.pack("<Q", value)[:length]
        path.write_bytes(damaged[: rng.choice([len(sound)] * 4 + [rng.randrange(len(sound))])])
        outcomes[use(path)] += 1
    assert min(outcomes.values()) > 20


def use(path: Path) -> str:
    try:
        reader = GgufReader(path)
        check_tensors(reader, parse_config(reader.config))
        for name in reader.names():
            reader.read(name)
    except InputError as error:
        return "refused" if "\n" not in str(error) else "not one line"
    return "used"


@pytest.mark.end_to_end
def test_smollm2_equals_transformers() -> None:
    from pocketlm.export.fetch import fetch

    path = fetch("smollm2-135m")
    reader = GgufReader(path)
    config = parse_config(reader.config)
    check_tensors(reader, config)
    assert config.tie_word_embeddings
    assert reader.licence == "apache-2.0"
    expected = transformers_state(path)
    expected.pop("lm_head.weight")
    assert set(reader.names()) == set(expected)
    for name in reader.names():
        np.testing.assert_array_equal(reader.read(name), expected[name])
    assert json.loads(reader.tokenizer_files()["generation_config.json"])["eos_token_id"] == [2]
