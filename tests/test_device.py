"""Sideloading: the real adb client against a fake phone; what an app measured, read and shown."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from fake_adbd import FakePhone, adb_environment
from pocketlm.errors import InputError
from pocketlm.export.bundle import read_manifest
from pocketlm.runtimes import device_android
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.device import Copy, choose_phone, install, list_phones
from pocketlm.runtimes.device_results import compare_table, read_results
from pocketlm.runtimes.progress import silent

GOLDEN = Path(__file__).parent / "golden"
GOOD = GOLDEN / "bundle" / "good"
needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="no adb here; install it with: apt install adb")


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = adb_environment(port, tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True)


@pytest.fixture
def plug_in(adb_server, tmp_path):
    phones = []

    def make(**settings):
        phone = FakePhone(tmp_path / f"phone{len(phones)}", **settings)
        phones.append(phone)
        subprocess.run(["adb", "connect", phone.serial], capture_output=True, timeout=60)
        wait_until(phone, "ready" if phone.authorized else "allow USB debugging")
        return phone

    yield make
    for phone in phones:
        subprocess.run(["adb", "disconnect", phone.serial], capture_output=True, timeout=60)
        phone.close()


@pytest.fixture
def bundle(tmp_path):
    return Path(shutil.copytree(GOOD, tmp_path / "my bundle"))


FOLDER = "/data/local/tmp/pocketlm/my_bundle"


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_adb
def test_a_bundle_is_installed_whole_with_the_manifest_last(plug_in, bundle, capsys):
    phone = plug_in()
    assert run(["device", "install", str(bundle)]) == 0
    assert "my_bundle is on Fake Phone" in capsys.readouterr().out
    assert files_below(phone.local(FOLDER)) == files_below(bundle)
    moved = [command for command in phone.commands if command.startswith("mv ")]
    assert "pocketlm.json" in moved[-1]


@needs_adb
def test_what_is_there_is_not_sent_again(plug_in, bundle):
    phone = plug_in()
    install(bundle)
    sent = phone.pushed
    install(bundle)
    assert phone.pushed == sent
    phone.local(FOLDER + "/golden.json").write_text("damaged")
    phone.local(FOLDER + "/stale.bin").write_text("of an older export")
    install(bundle)
    assert phone.pushed == sent + (bundle / "golden.json").stat().st_size + (bundle / "pocketlm.json").stat().st_size
    assert files_below(phone.local(FOLDER)) == files_below(bundle)


@needs_adb
def test_an_index_comes_with_the_bundle_and_stays(plug_in, bundle, tmp_path, capsys):
    phone, facts = plug_in(), GOLDEN / "facts.db"
    (tmp_path / "none.db").write_text("no index")
    assert run(["device", "install", str(bundle), "--facts", str(tmp_path / "none.db")]) == 2
    assert "none.db: is no index" in capsys.readouterr().err
    assert phone.pushed == 0
    install(bundle)
    assert run(["device", "install", str(bundle), "--facts", str(facts)]) == 0
    whole = files_below(bundle) | {"facts.db": facts.read_bytes()}
    assert files_below(phone.local(FOLDER)) == whole
    phone.local(FOLDER + "/golden.json").write_text("damaged")
    install(bundle)
    assert files_below(phone.local(FOLDER)) == whole


@needs_adb
def test_a_copy_that_was_cut_off_goes_on_where_it_was(plug_in, bundle):
    tokenizer = (bundle / "tokenizer.json").stat().st_size
    phone = plug_in(dies_after=9000)
    found = choose_phone(phone.serial)[1]
    what = Copy(bundle, read_manifest(bundle), "my_bundle")

    def send():
        device_android.install(found, what, silent, chunk=2000)

    with pytest.raises(InputError, match=r"the phone is gone .*; plug it in again and repeat"):
        send()
    assert not phone.local(FOLDER + "/pocketlm.json").exists()
    before = phone.pushed
    wait_until(phone, "ready")
    send()
    assert files_below(phone.local(FOLDER)) == files_below(bundle)
    whole = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert phone.pushed - before < whole - 4000
    assert tokenizer > 9000  # it was this file that was cut


def wait_until(phone: FakePhone, state: str) -> None:
    """adb tells first that a phone is offline, and what it is a moment later."""
    for _ in range(100):
        if any(found.serial == phone.serial and state in found.state for found in list_phones()):
            return
        time.sleep(0.1)
    raise AssertionError(f"adb never saw this phone as {state}")


@needs_adb
def test_damage_on_the_way_is_noticed(plug_in, bundle):
    phone = plug_in()
    phone.script("sha256sum", f"echo {'0' * 64} $1")
    with pytest.raises(InputError, match="did not arrive as it is here; repeat the command"):
        install(bundle)
    assert not phone.local(FOLDER + "/pocketlm.json").exists()


@needs_adb
def test_a_phone_with_too_little_space_gets_nothing(plug_in, bundle):
    phone = plug_in()
    phone.script("df", "echo Filesystem 1K-blocks Used Available Use% Mounted; echo /dev/x 1000 990 10 99% /data")
    with pytest.raises(InputError, match=r"needs 67 MB and the phone has 0 MB free"):
        install(bundle)
    assert phone.pushed == 0


@needs_adb
def test_an_old_android_is_refused(plug_in, bundle):
    phone = plug_in()
    phone.script("getprop", "case $1 in *sdk) echo 25;; *) echo 7.1.2;; esac")
    with pytest.raises(InputError, match=r"Android 7.1.2 \(API 25\) is too old"):
        install(bundle)


@needs_adb
def test_two_phones_and_one_that_does_not_trust(plug_in, bundle, capsys):
    first, second = plug_in(), plug_in(authorized=False)
    with pytest.raises(InputError, match=r"2 phones are connected .*choose one with --serial"):
        install(bundle)
    with pytest.raises(InputError, match="allow USB debugging in the dialog"):
        install(bundle, serial=second.serial)
    assert install(bundle, serial=first.serial).serial == first.serial
    assert run(["device", "list", "--json"]) == 0
    states = {phone["serial"]: phone["state"] for phone in json.loads(capsys.readouterr().out)}
    assert states[first.serial] == "ready"
    assert (
        "allow USB debugging in the dialog" in states[second.serial]
    )  # unauthorized, or authorizing while adb tries again


@needs_adb
def test_no_phone(adb_server, bundle, capsys):
    assert list_phones() == []
    assert run(["device", "list"]) == 0
    assert "no phone is connected" in capsys.readouterr().out
    assert run(["device", "verify", str(bundle)]) == 2
    assert "no phone is connected" in capsys.readouterr().err


def test_without_adb(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="adb is not installed"):
        install(bundle)


@needs_adb
def test_the_app_is_installed_and_may_be_refused(plug_in, bundle, tmp_path):
    app = tmp_path / "app.apk"
    app.write_bytes(b"an app")
    phone = plug_in()
    install(bundle, app)
    assert any(command.startswith("pm ") and "install" in command for command in phone.commands)
    phone.script("pm", "echo 'Failure [INSTALL_FAILED_UPDATE_INCOMPATIBLE: signatures do not match]'")
    with pytest.raises(InputError, match=r"refused the app|adb failed.*INSTALL_FAILED_UPDATE_INCOMPATIBLE"):
        install(bundle, app)
    with pytest.raises(InputError, match="build the app first"):
        install(bundle, tmp_path / "absent.apk")


def results_text(folder: Path, **changes) -> str:
    from pocketlm.export.bundle import hash_file

    content = json.loads((GOLDEN / "device_results.json").read_text())
    content["bundle"]["manifest_sha256"] = hash_file(folder / "pocketlm.json").sha256
    del content["verify"]["executorch"]
    return json.dumps(content | changes)


def answering(phone: FakePhone, text: str) -> None:
    """`am start` leaves these results, as the app would."""
    (phone.root / "answer.json").write_text(text)
    folder = phone.local(device_android.RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    phone.script("am", f'[ "$1" = start ] && cp {phone.root}/answer.json {folder}/$6.json; true')


@needs_adb
def test_a_phone_verifies(plug_in, bundle, capsys):
    phone = plug_in()
    answering(phone, results_text(bundle))
    assert run(["device", "verify", str(bundle)]) == 0
    assert "passed" in capsys.readouterr().out
    started = next(command for command in phone.commands if command.startswith("am start"))
    assert "--es bundle my_bundle --ez verify true" in started
    assert files_below(phone.local(device_android.RESULTS)) == {}
    failed = json.loads(results_text(bundle))["verify"]
    failed["onnx"] |= {"kl": 3.0, "passed": False}
    answering(phone, results_text(bundle, verify=failed))
    assert run(["device", "verify", str(bundle)]) == 1
    assert "does not compute what tiny computes" in capsys.readouterr().err


@needs_adb
def test_a_phone_measures(plug_in, bundle, capsys):
    phone = plug_in()
    answering(phone, results_text(bundle))
    assert run(["device", "bench", str(bundle), "--no-host", "--sustained", "3", "--runs", "2"]) == 0
    assert "Phone 1" in capsys.readouterr().out
    started = next(command for command in phone.commands if command.startswith("am start"))
    assert "--ez bench true" in started
    assert "--ei runs 2 --ei sustained_seconds 3" in started


@needs_adb
def test_a_phone_that_cannot_do_it(plug_in, bundle, capsys):
    phone = plug_in()
    answering(phone, results_text(bundle, error="the model needs about 900 MB and 300 MB are free"))
    assert run(["device", "verify", str(bundle)]) == 2
    assert "300 MB are free" in capsys.readouterr().err
    answering(phone, results_text(bundle, bundle={"name": "tiny", "manifest_sha256": "ab"}))
    assert run(["device", "verify", str(bundle)]) == 2
    assert "has another export of tiny; repeat: pocketlm device install" in capsys.readouterr().err
    phone.script("am", "true")
    phone.script("pidof", "exit 1")
    assert run(["device", "verify", str(bundle)]) == 2
    assert "the app ended without results" in capsys.readouterr().err
    phone.script("pidof", "echo 1")
    assert run(["device", "verify", str(bundle), "--timeout", "1"]) == 2
    assert "no results after 1 s" in capsys.readouterr().err
    phone.script("am", "[ $1 = start ] && echo 'Error: Activity class does not exist.'; true")
    assert run(["device", "verify", str(bundle)]) == 2
    assert "install it with: pocketlm device install --app" in capsys.readouterr().err


def test_results_are_shown(capsys, tmp_path):
    assert run(["bench", "--import", str(GOLDEN / "device_results.json")]) == 0
    shown = capsys.readouterr().out
    for figure in ("Phone 1", "20+10 tokens", "battery current, mA", "-350"):
        assert figure in shown
    assert run(["bench", "--import", str(GOLDEN / "device_results.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["device"]["model"] == "Phone 1"
    assert run(["bench"]) == 2
    assert "name a bundle to measure" in capsys.readouterr().err
    assert run(["bench", "--import", str(tmp_path / "absent.json")]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2}, {"kind": "other"}, {"device": []}, {"bundle": {}}, {"bench": {"targets": {}}},
        {"verify": {"onnx": {"tolerance_kl": 0.1, "passed": "yes"}}},
        {"verify": {"onnx": {"kl": 0.2, "tolerance_kl": 0.1, "passed": True}}},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_results_are_refused(change):
    content = json.loads((GOLDEN / "device_results.json").read_text()) | change
    with pytest.raises(InputError, match=r"r.json: (damaged|not results)"):
        read_results(json.dumps(content), "r.json")
    for text in ("", "[]", "{}", "null"):
        with pytest.raises(InputError, match=r"r.json: damaged"):
            read_results(text, "r.json")


def test_results_without_timings_are_not_compared():
    content = json.loads((GOLDEN / "device_results.json").read_text())
    del content["bench"]
    with pytest.raises(InputError, match="measure with: pocketlm device bench"):
        compare_table([read_results(json.dumps(content), "r.json")], None)
