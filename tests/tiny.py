"""Tiny random models for tests: real files in real formats, small enough to build in a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters. The quick brown fox jumps over the lazy dog. What is the capital of "
    "France? The capital of France is Paris. Write a function that returns the sum of two numbers: def add(a, b): "
    "return a + b. Once upon a time there was a small model that lived in a telephone and answered every question."
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def tiny_llama(
    folder: Path,
    *,
    tied: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    rope: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    shards: int = 1,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 160,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 512,
    context: int = 256,
    seed: int = 0,
) -> Path:
    """Write a Hugging Face folder with a random LlamaForCausalLM and a small tokenizer; return the folder.

    ``rope`` is transformers' ``rope_parameters`` (see LLAMA3_ROPE). Weights are large enough to give peaked logits.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=context,
        rms_norm_eps=1e-5, tie_word_embeddings=tied, attention_bias=attention_bias, mlp_bias=mlp_bias,
        rope_parameters=dict(rope or {"rope_type": "default", "rope_theta": 10000.0}), bos_token_id=1, eos_token_id=2,
        pad_token_id=2, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_weights(folder, random_state(config, seed), dtype, shards)
    write_tokenizer(folder, vocab)
    return folder


def random_state(config: Any, seed: int) -> dict[str, Any]:
    """Random float32 weights of a LlamaForCausalLM by name; norms near 1; no lm_head when tied."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = torch.randn(value.shape, generator=generator)
        state[name] = 1 + 0.1 * noise if "norm" in name else 0.15 * noise
    return state


def write_weights(folder: Path, state: Mapping[str, Any], dtype: str = "float32", shards: int = 1) -> None:
    """Write tensors as model.safetensors, or dealt out to several shards with an index."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: value.to(getattr(torch, dtype)).contiguous() for name, value in state.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in tensors if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, vocab: int = 512) -> None:
    """Train a byte-level BPE tokenizer like SmolLM2's on TEXT; write it with a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def tiny_gguf(
    path: Path,
    source: Path,
    weight_type: str = "F32",
    *,
    pre: str = "smollm",
    sentencepiece: Path | None = None,
    **overrides: str,
) -> Path:
    """Write a folder made by tiny_llama as GGUF, the way llama.cpp's converter does; return the path.

    ``pre`` is the tokenizer.ggml.pre to claim; ``sentencepiece`` a .model file to take the tokenizer from instead.

    ``weight_type`` is the type of all matrices (a name of gguf.GGMLQuantizationType that gguf can quantise to);
    ``overrides`` give other types to single tensors, with ``__`` for dots (token_embd__weight="Q8_0").
    """
    import gguf
    import numpy as np
    from gguf.quants import quantize

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    write_gguf_config(writer, config)
    if sentencepiece is None:
        write_gguf_tokenizer(writer, source, config["vocab_size"], pre)
    else:
        _write_sentencepiece(writer, sentencepiece, config["vocab_size"])
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _rope_factors(config))
    for name, value in _gguf_state(source, config).items():
        usual = weight_type if value.ndim > 1 else "F32"
        kind = gguf.GGMLQuantizationType[overrides.get(name.replace(".", "__"), usual)]
        writer.add_tensor(name, quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_state(source: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    import gguf
    from safetensors.torch import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    state = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            value = tensor.float().numpy()
            projection = name.split(".")[-2]
            if projection in heads:  # halves of each head -> interleaved pairs, as convert_hf_to_gguf.py has it
                parts = value.reshape(heads[projection], 2, -1, *value.shape[1:])
                value = parts.swapaxes(1, 2).reshape(value.shape)
            state[names.get_name(name, (".weight", ".bias"))] = value
    return state


def _rope_factors(config: Mapping[str, Any]) -> Any:
    """What llama.cpp's converter writes as rope_freqs.weight, computed the way it does."""
    import math

    import numpy as np

    rope = config["rope_parameters"]
    context = rope["original_max_position_embeddings"]
    low, high = context / rope["low_freq_factor"], context / rope["high_freq_factor"]
    factors = []
    for exponent in range(0, config["head_dim"], 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (exponent / config["head_dim"])
        smooth = (context / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        between = 1 / ((1 - smooth) / rope["factor"] + smooth) if high <= wavelength <= low else 0.0
        factors.append(1.0 if wavelength < high else rope["factor"] if wavelength > low else between)
    return np.array(factors, np.float32)


def write_gguf_config(writer: Any, config: Mapping[str, Any]) -> None:
    import gguf

    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _write_sentencepiece(writer: Any, model: Path, vocab: int) -> None:
    """As convert_hf_to_gguf.py does it in _set_vocab_sentencepiece."""
    import gguf
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(str(model))
    tokens, scores, kinds = [], [], []
    for i in range(vocab):
        real = i < pieces.vocab_size()
        tokens.append(pieces.id_to_piece(i) if real else f"[PAD{i}]")
        scores.append(pieces.get_score(i) if real else -1000.0)
        kind = gguf.TokenType.UNUSED if not real else gguf.TokenType.NORMAL
        for test, name in ("unknown", "UNKNOWN"), ("control", "CONTROL"), ("byte", "BYTE"):
            if real and getattr(pieces, f"is_{test}")(i):
                kind = gguf.TokenType[name]
        kinds.append(int(kind))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())


def write_gguf_tokenizer(writer: Any, source: Path, vocab: int, pre: str) -> None:
    import gguf

    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    kinds = [int(gguf.TokenType.UNUSED)] * vocab
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i] = token
        kinds[i] = int(gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template((source / "chat_template.jinja").read_text())
