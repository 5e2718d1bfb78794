"""From what a user writes to the right reader, or to a line that helps."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from pocketlm.errors import InputError
from pocketlm.export import hub, open_checkpoint
from pocketlm.export.gguf_reader import GgufReader
from pocketlm.export.safetensors_reader import SafetensorsReader
from tiny import tiny_gguf, tiny_llama


def refusal(model: str) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint.open_checkpoint(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_kind_has_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "org" / "name")
    file = tiny_gguf(tmp_path / "a.gguf", folder)
    assert isinstance(open_checkpoint.open_checkpoint(str(folder)), SafetensorsReader)
    assert isinstance(open_checkpoint.open_checkpoint(str(file)), GgufReader)
    monkeypatch.setattr(open_checkpoint, "fetch", lambda name: file)
    assert isinstance(open_checkpoint.open_checkpoint("smollm2-135m"), GgufReader)
    monkeypatch.setattr(open_checkpoint, "download", lambda name: folder)
    assert isinstance(open_checkpoint.open_checkpoint("org/name"), SafetensorsReader)


def test_a_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint.open_checkpoint("org/name").files == (Path("org/name/model.safetensors"),)


@pytest.mark.parametrize(
    "model", ["nope", "/a/b", "./a/b", "a/b/c", "a/b.gguf", "../b", "", "a\0b", "~nobody/x", "x" * 5000]
)
def test_what_is_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # whatever lies around the clone
    assert "no such file or folder; not a known demo model (smollm2-135m), and not a Hub id" in refusal(model)


def test_files_that_are_not_models(tmp_path: Path) -> None:
    for name, message in ("model.safetensors", "give the folder"), ("a.pt", "pickle"), ("a.txt", "is not a GGUF file"):
        (tmp_path / name).write_bytes(b"text")
        assert message in refusal(str(tmp_path / name))


def test_only_data_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def snapshot(model: str, **options: list[str]) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert hub.download("org/name") == tmp_path
    files = ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "README.md", "LICENSE"]
    others = ["pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "onnx/model.json", "x.pt", "model.gguf"]
    assert list(filter_repo_objects(files + others, **asked)) == files


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("many\nlines"), "the Hub cannot be reached (ConnectionError)"),
        (LocalEntryNotFoundError("many\nlines"), "the Hub cannot be reached (LocalEntryNotFoundError)"),
        (RuntimeError("many\nlines"), "the Hub cannot be reached (RuntimeError)"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def snapshot(model: str, **options: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert f"org/name: no such file or folder, and {message}" in refusal("org/name")
