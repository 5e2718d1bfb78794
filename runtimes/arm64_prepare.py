"""`pocketlm device prepare arm64`: an arm64 user space beside the machine's own, for artifacts to run in.

Nothing is installed and no root is needed: Debian's packages and the wheels are unpacked into the user's cache folder.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..export.fetch import cache_folder
from .arm64_download import download_packages, download_wheels
from .arm64_lane import EMULATOR, PYTHON, READY_FILE, RUNNER, Lane, is_native
from .arm64_lock import DATA, Lock, read_lock
from .progress import Progress, silent

# What the runner is linked with, below the wheel's folder.
_LIBRARIES = (
    "lib/libexecutorch.so",
    "lib/libexecutorch_backend_xnnpack.so",
    "lib/libexecutorch_kernels_optimized.so",
    "lib/libexecutorch_kernels_quantized.so",
    "lib/libexecutorch_threadpool.so",
    "extension/llm/custom_ops/libcustom_ops_aot_lib.so",
)
# Libraries of torch and Python that ExecuTorch's kernels name; the first takes torch's place, the others stay empty.
_ABSENT = ("libtorch_cpu.so", "libtorch.so", "libc10.so", "_C.cpython-311-aarch64-linux-gnu.so")


def prepare(
    cache: Path | None = None, *, mirror: str | None = None, force: bool = False, progress: Progress = silent
) -> Lane | None:
    """Download, unpack and build all that the arm64 lane needs; None where the machine is arm64 itself.

    cache   where it is kept; default: ``cache_folder``. Finished downloads are kept until all is done
    mirror  of the Debian archive; None is the one that the machine's own apt uses
    force   prepare again, even if it is there

    Raises InputError if the machine cannot, a download is not the expected one, or something does not build.
    """
    if is_native():
        return None
    lock, base = read_lock(), (cache_folder() if cache is None else cache) / "arm64"
    lane = Lane(base / lock.digest)
    if lane.is_ready and not force:
        return lane
    _check_machine()
    try:
        downloads = base / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        with progress("Downloading Debian packages"):
            packages = download_packages(lock, downloads, mirror)
        with progress("Downloading aarch64 wheels"):
            wheels = download_wheels(lock, downloads)
        with tempfile.TemporaryDirectory(prefix="prepare-", dir=base) as staging:
            made = Path(staging) / lock.digest
            _unpack(lock, packages, wheels, made, progress)
            with progress("Building the runner of .pte files"):
                _build(made)
            with progress("Starting Python for the first time"):
                _try_out(made)
            _put_in_place(made, lane.folder)
        shutil.rmtree(downloads)
    except OSError as error:
        raise InputError(
            f"{base}: cannot be written ({error.strerror or error}); set POCKETLM_CACHE to a folder with 1 GB of space"
        ) from error
    return lane


def _check_machine() -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise InputError(
            f"the arm64 lane needs Linux on x86-64 or on arm64, this is {platform.system()} on {platform.machine()}"
        )
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise InputError(
                f"{tool} is missing: the arm64 lane is made of Debian's packages; install {package}, "
                "or run in a container of Debian"
            )


def _unpack(lock: Lock, packages: Mapping[str, Path], wheels: Sequence[Path], folder: Path, progress: Progress) -> None:
    """Below ``folder``: host (emulator, compiler), root (arm64 user space), site (the wheels)."""
    with progress("Unpacking", len(lock.packages) + len(wheels)) as step:
        for package in lock.packages:
            target = folder / ("root" if package in lock.root else "host")
            target.mkdir(parents=True, exist_ok=True)
            _run(["dpkg-deb", "-x", packages[package.name + ":" + package.architecture], target])
            step()
        for wheel in wheels:
            shutil.unpack_archive(wheel, folder / "site", "zip")
            step()


def _build(folder: Path) -> None:
    """Compile the runner, keep what it needs of ExecuTorch's wheel, and drop the compiler."""
    executorch, out = folder / "site" / "executorch", folder / "lib"
    out.mkdir()
    for source in _LIBRARIES:
        shutil.copy2(executorch / source, out / Path(source).name)
    for name in _ABSENT:
        source_file = str(DATA / "arm64_no_torch.cpp") if name == _ABSENT[0] else os.devnull
        _compile(folder, ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-x", "c++", source_file, "-o", str(out / name)])
    headers = (executorch / "include", executorch / "include/executorch/runtime/core/portable_type/c10")
    linked = [str(out / name) for name in (*_ABSENT, *(Path(library).name for library in _LIBRARIES))]
    flags = ["-DC10_USING_CUSTOM_GENERATED_MACROS", *(f"-isystem{header}" for header in headers)]
    # Libraries register their kernels when they are loaded, so all are kept though the runner calls few of them.
    link = ["-Wl,--no-as-needed", *linked, "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN"]
    _compile(folder, [*flags, str(DATA / "arm64_runner.cpp"), "-o", str(folder / RUNNER), *link])
    shutil.rmtree(executorch)
    kept = folder / EMULATOR
    (folder / "host/usr/bin/qemu-aarch64").rename(kept)
    shutil.rmtree(folder / "host")


def _compile(folder: Path, arguments: Sequence[str]) -> None:
    host = folder / "host"
    command = [str(host / "usr/bin/aarch64-linux-gnu-g++-12"), f"-Wl,--sysroot={host}", "-std=c++20", "-O1", *arguments]
    _run(command, {"LD_LIBRARY_PATH": str(host / "usr/lib/x86_64-linux-gnu")})


def _try_out(folder: Path) -> None:
    """Start the emulated Python once: it shows that all is there, and leaves compiled modules for later starts."""
    lane = Lane(folder)
    _run([*lane.emulated("max"), folder / PYTHON, "-S", "-c", "import onnxruntime"], lane.environment)


def _put_in_place(made: Path, final: Path) -> None:
    (made / READY_FILE).touch()
    shutil.rmtree(final, ignore_errors=True)
    made.rename(final)


def _run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Run a tool; raises InputError with the last line it wrote if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), done.stderr.strip())
        raise InputError(
            f"preparing the arm64 lane failed: {Path(command[0]).name} ended with {done.returncode} ({reason[-200:]})"
        )
