"""GGUF files of other architectures than Llama's, against the models that they were made from."""

import json

import gguf
import numpy as np
import pytest
from pocketlm.export.check import check_tensors
from pocketlm.export.config import parse_config
from pocketlm.export.gguf_reader import GgufReader
from pocketlm.export.to_torch import reference_logits
from pocketlm.runtimes.judge import CheckpointWeights
from safetensors.numpy import load_file
from tiny import write_gguf_config, write_gguf_tokenizer
from tiny_families import canonical, expected_logits, family_folder, token_ids


def write(path, name, architecture):
    """A tiny model as llama.cpp's converter writes it: these architectures keep Hugging Face's order of rows."""
    folder = family_folder(name)
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer = gguf.GGUFWriter(path, architecture)
    write_gguf_config(writer, config)
    write_gguf_tokenizer(writer, folder, config["vocab_size"], "qwen2")
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for stored, value in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(stored, (".weight", ".bias")), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufReader(path)


@pytest.mark.parametrize(("name", "architecture"), [("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_the_model_in_the_file_is_the_one_it_was_made_from(name, architecture, tmp_path):
    reader = write(tmp_path / "m.gguf", name, architecture)
    config = parse_config(reader.config, 64)
    assert config == canonical(name)[0]
    check_tensors(reader, config)
    logits = reference_logits(CheckpointWeights(reader), config, np.array([token_ids()]))[0]
    assert np.abs(logits - expected_logits(name)).max() <= 1e-4
