"""Model folders: every layout they come in, against transformers; and every way they can be broken."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export.safetensors_reader import SafetensorsReader
from tiny import CHAT_TEMPLATE, tiny_llama


def transformers_state(folder: Path) -> dict[str, np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("pristine"), shards=2, tied=True)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a sharded model that a test may break."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        SafetensorsReader(folder).tokenizer_files()
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True},
        {"tied": False, "shards": 3, "dtype": "bfloat16"},
        {"attention_bias": True, "mlp_bias": True, "dtype": "float16"},
    ],
)
def test_reads_what_transformers_reads(tmp_path: Path, options: dict[str, object]) -> None:
    folder = tiny_llama(tmp_path, **options)
    expected = transformers_state(folder)
    reader = SafetensorsReader(folder)
    if options.get("tied"):
        expected.pop("lm_head.weight")
    assert set(reader.names()) == set(expected)
    for name in reader.names():
        values = reader.read(name)
        assert values.dtype == np.float32
        assert reader.shape(name) == values.shape
        np.testing.assert_array_equal(values, expected[name])


def save(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    reader = SafetensorsReader(folder)
    return {name: reader.read(name) for name in reader.names()}


def test_a_head_that_repeats_the_embedding_is_dropped_when_tied(folder: Path) -> None:
    tensors = tensors_of(folder)
    save(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    reader = SafetensorsReader(folder)
    assert "lm_head.weight" not in reader.names()
    assert reader.config["tie_word_embeddings"] is True


def test_a_head_that_differs_unties_as_in_transformers(folder: Path) -> None:
    tensors = tensors_of(folder)
    save(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    reader = SafetensorsReader(folder)
    assert reader.config["tie_word_embeddings"] is False
    np.testing.assert_array_equal(reader.read("lm_head.weight"), transformers_state(folder)["lm_head.weight"])


def test_names_of_a_base_model_get_their_prefix_and_old_buffers_go(folder: Path) -> None:
    tensors = tensors_of(folder)
    buffers = {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32)}
    save(folder, {name.removeprefix("model."): value for name, value in tensors.items()} | buffers)
    assert set(SafetensorsReader(folder).names()) == set(tensors)


def test_not_finite_values_name_the_tensor(folder: Path) -> None:
    tensors = tensors_of(folder)
    for value in np.nan, np.inf, -np.inf:
        tensors["model.norm.weight"][5] = value
        save(folder, tensors)
        with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN or infinite"):
            SafetensorsReader(folder).read("model.norm.weight")


def test_links_into_a_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    assert SafetensorsReader(folder).read("model.norm.weight").shape == (64,)


def test_missing_pieces(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "has neither tokenizer.json nor tokenizer.model" in refusal(folder)
    next(folder.glob("*-00002-*")).unlink()
    assert "the shard model-00002-of-00002.safetensors is missing" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "has no weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "can run code when it is loaded; convert" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    (folder / "model.gguf").write_bytes(b"")
    assert "give the file" in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100000, '{"a": \ud800}'])
def test_config_that_is_no_json_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert "config.json" in refusal(folder)


def test_code_that_comes_with_a_model_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "x.T"})
    assert "auto_map" in refusal(folder)
    edit_json(folder / "config.json", auto_map={"AutoModel": "x.M"})
    assert "config.json: auto_map" in refusal(folder)


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "/etc/passwd", "..\\x", "C:\\x", "a/../../x", "", ".", "a\0b"]
)
def test_shards_outside_of_the_folder_are_refused(folder: Path, place: str) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": place})
    assert "outside of the folder" in refusal(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": "x" * 300}])
def test_an_index_that_is_not_one(folder: Path, weight_map: object) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    assert refusal(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    assert "is also in" in refusal(folder)


def test_a_damaged_shard_is_found_when_the_model_is_opened(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    sound = shard.read_bytes()
    header_size = struct.unpack("<Q", sound[:8])[0]
    header = json.loads(sound[8 : 8 + header_size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"][1] += 4
    shifted = json.dumps(header).encode()
    broken = [sound[:cut] for cut in (0, 7, 8, 100, 8 + header_size, len(sound) - 1)]
    broken += [struct.pack("<Q", 2**60) + sound[8:], struct.pack("<Q", len(shifted)) + shifted]
    broken += [sound + b"\0", b"\0" * len(sound)]
    for content in broken:
        shard.write_bytes(content)
        assert f"{shard.name}: is not a sound safetensors file" in refusal(folder)


def test_other_types_are_refused_by_name(folder: Path) -> None:
    save(folder, tensors_of(folder) | {"model.extra": np.ones(3, np.int64)})
    assert "tensor model.extra has the type I64" in refusal(folder)


def test_tokenizer_files_are_completed_from_older_places(folder: Path) -> None:
    assert SafetensorsReader(folder).tokenizer_files()["chat_template.jinja"].decode() == CHAT_TEMPLATE
    (folder / "chat_template.jinja").unlink()
    (folder / "generation_config.json").unlink()
    assert "chat_template.jinja" not in SafetensorsReader(folder).tokenizer_files()
    settings = folder / "tokenizer_config.json"
    for template in "A", [{"name": "tools", "template": "B"}, {"name": "default", "template": "A"}]:
        edit_json(settings, chat_template=template)
        files = SafetensorsReader(folder).tokenizer_files()
        assert files["chat_template.jinja"] == b"A"
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("license: mit", None),
    ],
)
def test_licence_of_the_model_card(folder: Path, card: str, licence: str | None) -> None:
    assert SafetensorsReader(folder).licence is None
    (folder / "README.md").write_text(card)
    assert SafetensorsReader(folder).licence == licence
