"""The parts of the arm64 lane that need no emulator."""

import os
import re
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pocketlm.errors import InputError
from pocketlm.export.canonical import quantize_checkpoint
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.quantize.recipe import load_recipe
from pocketlm.runtimes import arm64_download, arm64_prepare, memory_limit
from pocketlm.runtimes.arm64_arithmetic import emulation_on
from pocketlm.runtimes.arm64_kernels import count_instructions, name_of
from pocketlm.runtimes.arm64_lane import CORES, Lane, find_lane, is_native, parse_place
from pocketlm.runtimes.arm64_lock import Lock, Package, Wheel, read_lock
from pocketlm.runtimes.arm64_session import PipeSession
from pocketlm.runtimes.build import export
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.devices import find_device, read_devices
from pocketlm.runtimes.golden import first_sequences, read_golden
from pocketlm.runtimes.onnx_session import OnnxSession
from pocketlm.runtimes.session import ArtifactError

ROOT = Path(__file__).parent.parent
emulated = pytest.mark.skipif(is_native(), reason="this machine is arm64 itself: nothing is emulated")

# As GNU as 2.40 assembles them.
ASSEMBLED = {
    0x0E829420: "sdot",  # sdot v0.2s, v1.8b, v2.8b
    0x4FBDEBDF: "sdot",  # sdot v31.4s, v30.16b, v29.4b[3]
    0x449F0020: "sdot",  # sdot z0.s, z1.b, z31.b
    0x44BF0020: "sdot",  # sdot z0.s, z1.b, z7.b[3]
    0x6E829420: "udot",  # udot v0.4s, v1.16b, v2.16b
    0x6FA2E020: "udot",  # udot v0.4s, v1.16b, v2.4b[1]
    0x449F0420: "udot",  # udot z0.s, z1.b, z31.b
    0x0E9E9DE3: "usdot",  # usdot v3.2s, v15.8b, v30.8b
    0x4F9EF9E3: "usdot",  # usdot v3.4s, v15.16b, v30.4b[2]
    0x449F7820: "usdot",  # usdot z0.s, z1.b, z31.b
    0x4E9FA601: "smmla",  # smmla v1.4s, v16.16b, v31.16b
    0x45029820: "smmla",  # smmla z0.s, z1.b, z2.b
    0x6E9FA601: "ummla",  # ummla v1.4s, v16.16b, v31.16b
    0x4E9FAE01: "usmmla",  # usmmla v1.4s, v16.16b, v31.16b
    0x0E628020: "smlal",  # smlal v0.4s, v1.4h, v2.4h
    0x4F522820: "smlal",  # smlal2 v0.4s, v1.8h, v2.h[5]
    0x4E22CC20: None,  # fmla v0.4s, v1.4s, v2.4s
    0x0E228020: None,  # smlal v0.8h, v1.8b, v2.8b
    0x44C20020: None,  # sdot z0.d, z1.h, z2.h
    0x6E42EC20: None,  # bfmmla v0.4s, v1.8h, v2.8h
    0x4EA29420: None,  # mla v0.4s, v1.4s, v2.4s
    0xD503201F: None,  # nop
}


def test_instructions_are_told_by_their_encoding(tmp_path):
    assert {word: name_of(word) for word in ASSEMBLED} == ASSEMBLED
    lines = [f"0x7f52dc7eae{index:02x}:  {word:08x}  .byte    0x20" for index, word in enumerate(ASSEMBLED)]
    (tmp_path / "log").write_text("----------------\nIN: \n" + "\n".join(lines) + "\n\n" + lines[0] + "\n")
    counted = count_instructions(tmp_path / "log")
    assert counted == {"sdot": 5, "udot": 3, "usdot": 3, "smmla": 2, "ummla": 1, "usmmla": 1, "smlal": 2}


def test_the_lock_pins_what_constraints_pin():
    lock = read_lock()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {wheel.name: wheel.version for wheel in lock.wheels} == {
        name: pinned[name] for name in ("onnxruntime", "executorch", "numpy")
    }
    for entry in (*lock.packages, *lock.wheels):
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256), entry.name
    assert {package.architecture for package in lock.root} == {"arm64"}


def test_every_phone_has_its_sources_and_every_core_a_phone():
    import tomllib

    content = tomllib.loads((ROOT / "runtimes/data/devices.toml").read_text())
    for key, entry in content.items():
        assert 0.3 * entry["ram_mb"] < entry["app_mb"] < 0.7 * entry["ram_mb"], key
        assert entry["app_mb"] < entry.get("app_entitled_mb", entry["ram_mb"]) <= entry["ram_mb"], key
        assert all(entry[f"{what}_source"] for what in ("ram", "app", "cores")), key
        assert set(entry["cores"]) <= set(CORES), key
    for core in set(CORES) - {"max"}:
        assert core in find_device(None, core).cores
    assert find_device(None, "max") is None
    assert find_device("none", "cortex-a53") is None
    assert find_device("iphone-13", "cortex-a53").app_bytes == read_devices()["iphone-13"].app_mb * 2**20
    with pytest.raises(InputError, match=r"no device 'nokia'; there are .*galaxy-a13"):
        find_device("nokia", "max")


def test_places_are_named_in_full():
    with pytest.raises(InputError, match="there are arm64 and, by core, arm64:cortex-a53"):
        parse_place("arm64:m4")
    with pytest.raises(InputError, match="--on x86"):
        parse_place("x86")


@emulated
def test_what_is_not_prepared_says_how(tmp_path, monkeypatch, capsys, tiny_folder):
    assert parse_place("arm64") == "cortex-a76"
    with pytest.raises(InputError, match="pocketlm device prepare arm64"):
        find_lane(tmp_path)
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    export(str(tiny_folder), tmp_path / "b", recipe="fp32", context=96)
    assert run(["verify", str(tmp_path / "b"), "--on", "arm64"]) == 2
    assert "run once: pocketlm device prepare arm64" in capsys.readouterr().err


@emulated
def test_a_machine_without_apt_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get is missing"):
        arm64_prepare.prepare(tmp_path)


@emulated
def test_an_operating_system_that_cannot_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(arm64_prepare.platform, "system", lambda: "Darwin")
    with pytest.raises(InputError, match="needs Linux on x86-64"):
        arm64_prepare.prepare(tmp_path)


FAKE_APT = """#!/bin/sh
echo "$@" >> "$APT_CALLS"
case "$*" in
  *print-uris*)
    echo "'http://other.test/stuff/dists/trixie/InRelease' a 0"
    echo "'http://mirror.test/debian-security/dists/trixie-security/InRelease' b 0"
    echo "'http://mirror.test/debian/dists/trixie/InRelease' c 0";;
  *download*) printf content > a_1%3a2_arm64.deb;;
esac
"""
CONTENT_SHA256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """An apt-get that only says what it was asked, and "downloads" one package; returns the file of its calls."""
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin/apt-get"
    path.write_text(FAKE_APT)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(arm64_download, "_KEYRING", keyring)
    monkeypatch.setattr(
        arm64_download.platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "trixie"}
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("APT_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def lock_of(sha256):
    package = Package("a", "1:2", "arm64", sha256)
    return Lock(("bookworm",), "3.11", (Wheel("w", "1", "0"),), (), (), (package,), "digest")


def test_a_package_is_fetched_once_and_held_against_its_hash(tmp_path, fake_apt):
    folder = tmp_path / "downloads"
    folder.mkdir()
    found = arm64_download.download_packages(lock_of(CONTENT_SHA256), folder, None)
    assert found["a:arm64"].read_text() == "content"
    calls = fake_apt.read_text()
    assert "download a:arm64=1:2" in calls
    arm64_download.download_packages(lock_of(CONTENT_SHA256), folder, None)
    assert fake_apt.read_text() == calls, "what is there must not be fetched again"
    assert [path.name for path in folder.iterdir()] == ["a_1%3a2_arm64.deb"]


def test_another_file_than_the_pinned_one_is_refused_and_removed(tmp_path, fake_apt):
    with pytest.raises(InputError, match="a 1:2 is not the expected file"):
        arm64_download.download_packages(lock_of("0" * 64), tmp_path, None)
    assert not list(tmp_path.glob("*.deb"))


def test_a_machine_of_another_distribution_asks_for_a_mirror(tmp_path, fake_apt, monkeypatch):
    monkeypatch.setattr(arm64_download.platform, "freedesktop_os_release", lambda: {"ID": "ubuntu"})
    with pytest.raises(InputError, match="--mirror URL"):
        arm64_download.download_packages(lock_of(CONTENT_SHA256), tmp_path, None)


def test_the_mirror_is_the_archive_and_not_security(tmp_path, fake_apt):
    assert arm64_download._mirror() == "http://mirror.test/debian"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("pipe") / "b"
    export(str(tiny_folder), folder, recipe="int4", context=96)
    return folder


def worker(*arguments):
    return [sys.executable, "-m", "pocketlm.runtimes.arm64_worker", *map(str, arguments)]


def test_a_session_through_a_pipe_is_the_session(bundle):
    here = OnnxSession(bundle / "onnx", 1)
    there = PipeSession(worker("onnx", bundle / "onnx", 1))
    tokens = list(range(3, 20))
    try:
        assert (there.context, there.vocab_size) == (96, 512)
        for part in (tokens[:9], tokens[9:10], tokens[10:]):
            assert np.array_equal(there.run(part), here.run(part))
        there.reset()
        here.reset()
        assert there.position == 0
        assert np.array_equal(there.run(tokens), here.run(tokens))
        with pytest.raises(InputError, match="outside the vocabulary"):
            there.run([512])
    finally:
        there.close()
    assert there.memory.peak_bytes > 0 or sys.platform != "linux"


def test_what_cannot_load_is_a_verdict_in_one_line(tmp_path):
    with pytest.raises(ArtifactError, match=r"^runtime: could not run \(.*model.onnx is missing") as caught:
        PipeSession(worker("onnx", tmp_path, 1))
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"died of SIGABRT"):
        PipeSession([sys.executable, "-c", "import os; os.abort()"])


# Speaks as a worker does, and takes 300 MB when it loads.
GREEDY = """
import struct, sys
out = sys.stdout.buffer
out.write(struct.pack("<i", 0)); out.flush()
sys.stdin.buffer.read(4)
try:
    taken = bytearray(300 << 20)
    taken[::4096] = b"1" * len(taken[::4096])
    out.write(struct.pack("<4i", 0, 8, 4, 8))
except MemoryError:
    out.write(struct.pack("<2i", -1, 13) + b"out of memory")
out.flush()
sys.stdin.buffer.read(4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("kind", ["best", "_with_rlimit"])
def test_memory_is_held_to_the_limit(monkeypatch, kind):
    if kind != "best":
        monkeypatch.setattr("pocketlm.runtimes.arm64_session.limit_memory", getattr(memory_limit, kind))
    command = [sys.executable, "-c", GREEDY]
    with pytest.raises(ArtifactError, match=r"^memory: needs more than 210 MB"):
        PipeSession(command, limit_bytes=200 << 20)
    session = PipeSession(command, limit_bytes=400 << 20)
    session.close()
    assert session.memory.limited_by in ("cgroup", "rlimit")
    assert session.memory.limit_bytes == 400 << 20
    assert 290 << 20 < session.memory.peak_bytes < 400 << 20


def test_the_first_sequences_keep_their_expectations(bundle):
    golden = read_golden(bundle)
    fewer = first_sequences(golden, 1)
    assert np.array_equal(fewer.evaluation.tokens, golden.evaluation.tokens[[0, 4]])
    assert (fewer.evaluation.prose, len(fewer.prompts)) == (1, 1)
    kept = fewer.targets["onnx"]["expected"]
    assert kept == [golden.targets["onnx"]["expected"][row] for row in (0, 4)]


def test_int8_layers_raise_the_noise_floor_of_cores_without_matrix_products(tiny_folder):
    """Their kernels round a hundred times more coarsely than the noise that the floor is measured with."""
    checkpoint = open_checkpoint(str(tiny_folder))
    config, names, ones = parse_config(checkpoint.config), list(checkpoint.names()), torch.ones(3)

    def noise_of(recipe, core):
        """What becomes of a noise of 1e-4 on an embedding of ones."""
        weights = dict(quantize_checkpoint(checkpoint, names, load_recipe(recipe), lambda error: None))

        def reference(*arguments, embedding_noise, first, cache):
            return (embedding_noise(ones) - ones).numpy()

        emulate = emulation_on("onnx", core).func
        found = emulate(reference, weights, config, None, embedding_noise=lambda x: x * (1 + 1e-4))
        return float(found.max())

    assert noise_of("int8-rtn", "cortex-a76") == pytest.approx(1e-2, rel=0.01)
    assert noise_of("int4-rtn", "cortex-a76") == pytest.approx(1e-4, rel=0.01)
    assert not isinstance(emulation_on("onnx", "max"), partial)
    assert not isinstance(emulation_on("executorch", "cortex-a76"), partial)
    assert emulation_on("onnx", "cortex-a53") is None


def test_a_lane_is_ready_when_it_was_finished(tmp_path):
    assert not Lane(tmp_path).is_ready
    (tmp_path / "ready").touch()
    assert Lane(tmp_path).is_ready


def test_the_group_device_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "pocketlm", "device", "prepare", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "no root is needed" in " ".join(done.stdout.split())
