"""From what a user writes to the right reader, or to a line that helps."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from pocketlm.errors import InputError
from pocketlm.export import hub, open_checkpoint
from pocketlm.export.gguf_reader import GgufReader
from pocketlm.export.safetensors_reader import SafetensorsReader
from pocketlm.runtimes.plan import plan
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
    asked.pop("local_files_only")
    assert list(filter_repo_objects(files + others, **asked)) == files


class _Hub(BaseHTTPRequestHandler):
    """A Hub that has no such model."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

    def log_message(self, *_: object) -> None:
        pass


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As HF_ENDPOINT does for a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def own_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Where a Hub of our own listens, which the client asks instead of the true one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield constants.ENDPOINT
    server.shutdown()
    server.server_close()


def plan_refusal(model: str) -> str:
    with pytest.raises(InputError) as caught:
        plan(model)
    return str(caught.value)


def test_a_model_that_the_hub_does_not_have(own_hub: str) -> None:
    assert hub.is_reachable(own_hub)
    for line in refusal("org/typo"), plan_refusal("org/typo"):
        assert line == "org/typo: no such file or folder, and no such model on the Hub (or it is private)"


def test_without_a_network_the_hub_is_not_asked_again_and_again(
    own_hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A port that nobody listens at; the client itself would try it for half a minute."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use_hub(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert not hub.is_reachable(constants.ENDPOINT)
        monkeypatch.setenv("http_proxy", own_hub)
        assert hub.is_reachable(constants.ENDPOINT)  # through what reaches it
        monkeypatch.delenv("http_proxy")
        for line in refusal("org/typo"), plan_refusal("org/typo"):
            assert "org/typo: no such file or folder, and the Hub cannot be reached (LocalEntryNotFound" in line
        snapshot = tmp_path / "models--org--typo" / "snapshots" / "0123"  # a model of an earlier day
        tiny_llama(snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123")
        assert open_checkpoint.open_checkpoint("org/typo").files[0].parent == snapshot
        assert plan("org/typo").parameters > 0


def test_a_name_that_cannot_be_looked_up_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: Event().wait(3))
    assert not hub.is_reachable("http://nowhere.invalid", seconds=0.05)


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
