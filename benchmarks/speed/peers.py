"""The peers' files, from the same weights: GGUF as llama.cpp quantises, and onnxruntime-genai's own builder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from shared import TYPES, library, packed, type_of

_FILE_TYPES = {"Q4_0": 2, "Q4_K_M": 15}  # llama_ftype, in llama.h
_NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def quantise_gguf(source: Path, out: Path, method: str) -> None:
    """``source`` with every matrix in the type that llama.cpp's quantiser chooses for it, from the values it has."""
    reader, found = GGUFReader(source), library()
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_file_type(_FILE_TYPES[method])
    layers = int(reader.fields["llama.block_count"].contents())
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values.astype(np.float32))
            continue
        kind = type_of(_hugging_face_name(tensor.name), values.shape[1], layers, method)
        blocks = packed(found, values, kind).reshape(values.shape[0], -1)
        writer.add_tensor(tensor.name, blocks, raw_dtype=GGMLQuantizationType(TYPES[kind][0]))
    _save(writer)


def _hugging_face_name(name: str) -> str:
    parts = name.split(".")
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{_NAMES[parts[-2]]}.weight"


def gguf_of(checkpoint: Any, vocabulary: Path, out: Path) -> None:
    """A checkpoint of the family llama as fp16 GGUF, for its speed: rows of queries and keys stay in their order.

    llama.cpp rotates neighbours where Hugging Face rotates halves; with random weights that is another random model of
    the same shape. The vocabulary is that of ``vocabulary`` (GGUF), filled up.
    """
    config = checkpoint.config
    writer = GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_vocabulary(writer, GGUFReader(vocabulary), config["vocab_size"])
    short = {value: key for key, value in _NAMES.items()}
    for name in checkpoint.names():
        values = checkpoint.read(name)
        writer.add_tensor(_gguf_name(name, short), values.astype(np.float16 if values.ndim == 2 else np.float32))
    _save(writer)


def _gguf_name(name: str, short: dict[str, str]) -> str:
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.norm": "output_norm"}
    stem = name.removesuffix(".weight")
    prefix = ""
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        prefix = f"blk.{layer}."
    return f"{prefix}{(norms | short)[stem]}.weight"


def _add_vocabulary(writer: GGUFWriter, reader: GGUFReader, size: int) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *(f"<unused{i}>" for i in range(size - len(tokens)))])
    writer.add_token_types([*kinds, *[5] * (size - len(tokens))])  # 5: unused
    writer.add_token_merges(reader.fields["tokenizer.ggml.merges"].contents())


def _save(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_genai(source: Path, out: Path, options: dict[str, str]) -> None:
    """onnxruntime-genai's builder on a Hugging Face folder; raises CalledProcessError with its output."""
    extra = [f"{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out, "-p", "int4"]
    subprocess.run([*command, "-e", "cpu", "--extra_options", *extra], check=True, capture_output=True, text=True)
