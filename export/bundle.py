"""The bundle: a folder with a manifest that names every file and its hash, and that appears whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..quantize.cache import CACHE_FORMATS, CacheFormat
from ..quantize.store import CanonicalTensor
from ..quantize.tensor import QuantizedTensor

if sys.platform != "win32":
    import fcntl

MANIFEST_FILE = "pocketlm.json"
SCHEMA_VERSION = 1
_PARTIAL = ".partial"
_SAMPLED_FIRST, _SAMPLES, _PAGE = 1 << 20, 1024, 4096  # bytes, pages, bytes


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: size in bytes and sha256 in hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of pocketlm.json.

    pocketlm        version that wrote the bundle
    name            what the user called the model
    source          files the weights came from: name -> size and hash
    config          the model's config.json
    recipe          formats of the weights
    context         tokens that every artifact's cache holds
    stop_tokens     ids that end an answer
    licence         SPDX identifier or name, if the source states one
    weights         name -> fingerprints of the canonical tensor (see ``fingerprint``)
    quantization    name -> relative error that quantising the tensor made: of its outputs over the calibration text
                    where it was calibrated, of its values elsewhere
    notes           what could not be done and why, a line each
    caches          target -> name of the CacheFormat in which its artifact keeps keys and values; bundles made before
                    there was a choice have none, and keep the target's floating point
    files           path in the bundle -> size and hash
    certificate     what ``verify`` found
    """

    pocketlm: str
    name: str
    source: Mapping[str, FileEntry]
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    context: int
    stop_tokens: tuple[int, ...]
    licence: str | None
    weights: Mapping[str, Mapping[str, str]]
    quantization: Mapping[str, float]
    notes: tuple[str, ...] = ()
    caches: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def cache(self, target: str) -> CacheFormat | None:
        """How a target's artifact keeps keys and values; None is the target's floating point."""
        return CACHE_FORMATS.get(self.caches.get(target, ""))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the artifacts in the bundle."""
        return tuple(
            name for name in ("onnx", "executorch", "coreml") if any(f.startswith(f"{name}/") for f in self.files)
        )


def fingerprint(tensor: CanonicalTensor) -> dict[str, str]:
    """What identifies a canonical tensor: format and shape in words, sha256 of its codes and of its scales."""
    if isinstance(tensor, QuantizedTensor):
        rows, columns = tensor.shape
        return {
            "format": f"int{tensor.bits} g{tensor.group} {rows}x{columns}",
            "codes": _sha256(tensor.codes),
            "scales": _sha256(tensor.scales),
        }
    return {"format": f"{tensor.dtype.name} {'x'.join(map(str, tensor.shape))}", "values": _sha256(tensor)}


def _sha256(array: Any) -> str:
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    try:
        with path.open("rb") as file:
            return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def sample_file(path: Path) -> str:
    """sha256 of a file's size, its first megabyte, its last page, and pages spread evenly between; a few milliseconds.

    It tells two models of one shape apart, but not a change of a few bytes.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for start, count in [(0, _SAMPLED_FIRST), *((size * i // _SAMPLES, _PAGE) for i in range(1, _SAMPLES))]:
                file.seek(start)
                digest.update(file.read(count))
            file.seek(max(0, size - _PAGE))
            digest.update(file.read(_PAGE))
            return digest.hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """All files below a folder but the manifest, by path relative to it with forward slashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write pocketlm.json, replacing an older one in one step."""
    partial = folder / (MANIFEST_FILE + ".partial")
    partial.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST_FILE)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises InputError if there is none, it is damaged, or a newer pocketlm wrote it.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a bundle, it has no {MANIFEST_FILE}; make one with: pocketlm export")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema version {version}, this pocketlm reads up to {SCHEMA_VERSION}; upgrade pocketlm"
            )
        for key in ("source", "files"):
            content[key] = {_safe(folder, name): FileEntry(**entry) for name, entry in content[key].items()}
        manifest = Manifest(**content | {key: tuple(content[key]) for key in ("stop_tokens", "notes")})
        _check_types(manifest)
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); export the model again") from error


def _check_types(manifest: Manifest) -> None:
    for key in ("config", "recipe", "weights", "quantization", "caches", "certificate"):
        if not isinstance(getattr(manifest, key), dict):
            raise TypeError(f"{key} is not an object")
    for target, name in manifest.caches.items():
        if name not in CACHE_FORMATS:
            raise TypeError(f"the cache of {target} is {name!r}")
    if not _is_count(manifest.context) or manifest.context < 1:
        raise TypeError(f"context is {manifest.context!r}")
    if not manifest.stop_tokens or not all(map(_is_count, manifest.stop_tokens)):
        raise TypeError("stop_tokens must be token ids, one at least")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _safe(folder: Path, name: str) -> str:
    """Refuse a path that leaves the bundle."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise InputError(f"{folder / MANIFEST_FILE}: file name {name!r} leaves the bundle")
    return name


def changed_files(folder: Path, manifest: Manifest, largest: int | None = None) -> list[str]:
    """Files that are missing or whose bytes are not the manifest's; ``largest`` leaves out those of more bytes."""

    def differs(name: str, entry: FileEntry) -> bool:
        path = folder / name
        try:
            return not path.is_file() or path.stat().st_size != entry.size_bytes or hash_file(path) != entry
        except OSError:  # a name that no file system takes
            return True

    files = manifest.files.items()
    return [name for name, entry in files if (largest is None or entry.size_bytes <= largest) and differs(name, entry)]


@contextmanager
def staging(final: Path, overwrite: bool, kept: str) -> Iterator[Path]:
    """A temporary sibling of ``final`` to write into; it is renamed at the end, and removed if anything fails.

    What a process that was killed left behind is removed too, but for its folder ``kept``, which is taken over.
    A link is followed: its target is what is replaced. Folders above that had to be made go again if anything fails.
    Raises InputError if ``final`` exists and may not be replaced, or the disk refuses.
    """
    final = Path(os.path.realpath(final))
    try:
        _check_free(final, overwrite)
        made = [parent for parent in final.parents if not parent.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{final.name}.{os.getpid()}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_PARTIAL, dir=final.parent))
        held = _hold(folder)
        _take_over_abandoned(final, folder, kept)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{final}: a file stands where a folder is needed; name another folder with -o") from error
    except OSError as error:
        raise InputError(f"{final}: cannot be written ({error.strerror})") from error
    try:
        yield folder
        _put_in_place(folder, final, overwrite)
    except OSError as error:
        raise InputError(f"{final}: cannot be written ({error.strerror}); nothing was left there") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)
        for parent in made:  # nearest first; one that holds anything stays
            with suppress(OSError):
                parent.rmdir()


def _check_free(final: Path, overwrite: bool) -> None:
    if not final.exists():
        return
    if not overwrite:
        raise InputError(f"{final} exists; give --overwrite to replace it, or another folder with -o")
    if not (final / MANIFEST_FILE).is_file() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(f"{final} exists and is not a bundle; it will not be replaced, name another folder with -o")


def _hold(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends; None where the system has no such locks.

    A process's number says less: in a container the next process has the same one, and others' cannot be seen.
    Raises BlockingIOError if somebody else holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _take_over_abandoned(final: Path, own: Path, kept: str) -> None:
    """Remove what exports to the same place left when they were killed, whose processes are no more; take the
    subfolder ``kept`` of one of them.
    """
    for folder in final.parent.glob(f".{glob.escape(final.name)}.*{_PARTIAL}"):
        owner = folder.name.removeprefix(f".{final.name}.").partition(".")[0]
        if folder == own or not owner.isdigit():
            continue
        try:
            held = _hold(folder)
        except OSError:  # an export that is under way, or has just ended
            continue
        if held is not None or not _is_running(int(owner)):
            with suppress(OSError):  # it has none, or we have one
                (folder / kept).rename(own / kept)
            shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _put_in_place(folder: Path, final: Path, overwrite: bool) -> None:
    """Rename the finished folder; an older bundle stays until the new one is in its place.

    What stands there is looked at again: somebody may have put it there while the export ran.
    """
    folder.chmod(0o777 & ~_umask())
    _check_free(final, overwrite)
    if not final.exists():
        folder.rename(final)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    final.rename(old / final.name)
    try:
        folder.rename(final)
    except OSError:
        (old / final.name).rename(final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
