"""`pocketlm report`: a page about a bundle for people, and a model card for the Hub."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.bundle import MANIFEST_FILE
from .model_card import model_card
from .plain_text import plain
from .progress import Progress, silent
from .report_facts import verdict
from .report_html import report_page
from .report_read import ReportData, read_report_data


def make_report(
    bundle: str | Path,
    output: str | Path,
    *,
    card: str | Path | None = None,
    base_model: str | None = None,
    evaluations: Sequence[Path] = (),
    benches: Sequence[Path] = (),
    plans: Sequence[Path] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the page to ``output``, and a model card to ``card``; what was written, as a JSON object.

    base_model   the source's name on the Hub, for the card; None is the name that it was exported by, if that is one
    evaluations  files with what `pocketlm eval --json` printed
    benches      files with what `pocketlm bench --json` printed, or apps on phones wrote
    plans        files with what `pocketlm plan --json` printed

    Nothing is run and nothing is loaded from a network. Raises InputError if the bundle or a file cannot be used, or an
    output exists and may not be replaced; then nothing is written.
    """
    bundle = Path(bundle)
    with progress("Hashing the files"):
        data = read_report_data(bundle, evaluations, benches, plans)
    contents = {Path(output): report_page(data)}
    if card is not None:
        if Path(os.path.realpath(card)) == Path(os.path.realpath(output)):
            raise InputError(f"{card}: page and card cannot be one file; name another with --card")
        contents[Path(card)] = model_card(data, base_model)
    _check_outputs(contents, _inputs(bundle, data, [*evaluations, *benches, *plans]), overwrite)
    _write_all({path: text.encode("utf-8") for path, text in contents.items()}, overwrite)
    found = verdict(data)
    return {
        "report": str(output),
        "card": None if card is None else str(card),
        "verdict": found.kind,
        "headline": found.headline,
        "lines": [plain(line) for line in found.lines],
        "manifest_sha256": data.manifest_sha256,
    }


def _inputs(bundle: Path, data: ReportData, files: Sequence[Path]) -> set[Path]:
    """What must not be replaced: the bundle's own files, and those that were given."""
    own = [bundle, *(bundle / name for name in (MANIFEST_FILE, *data.manifest.files))]
    return {Path(os.path.realpath(path)) for path in (*own, *files)}


def _check_outputs(outputs: Mapping[Path, str], inputs: set[Path], overwrite: bool) -> None:
    for path in outputs:
        final = Path(os.path.realpath(path))
        if final in inputs:
            raise InputError(f"{path}: is what the report is made of; name another file")
        if final.exists() and not final.is_file():
            raise InputError(f"{path}: exists and is not a file; name another")
        if final.exists() and not overwrite:
            raise InputError(f"{path} exists; give --overwrite to replace it, or name another file")
        if not final.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it, or name another file")


def _write_all(contents: Mapping[Path, bytes], overwrite: bool) -> None:
    """Write all files or none: each beside its place first, so that only renaming is left to fail."""
    finals = {Path(os.path.realpath(path)): content for path, content in contents.items()}
    placed: list[Path] = []
    with _partial_files(finals) as partial:
        try:
            for final, file in partial.items():
                new = not final.exists()
                if not new and not overwrite:  # somebody put it there meanwhile
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                file.replace(final)
                placed += [final] if new else []
        except OSError as error:
            for done in placed:
                done.unlink(missing_ok=True)
            raise InputError(f"{final}: cannot be written ({error.strerror}); nothing was left there") from error


@contextmanager
def _partial_files(contents: Mapping[Path, bytes]) -> Iterator[dict[Path, Path]]:
    """The contents in temporary files beside their places, which go again."""
    files: dict[Path, Path] = {}
    try:
        for final, content in contents.items():
            partial = final.parent / f".{final.name[:80]}.{secrets.token_hex(6)}.partial"
            try:
                with partial.open("xb") as file:
                    files[final] = partial
                    file.write(content)
            except OSError as error:
                raise InputError(f"{final}: cannot be written ({error.strerror})") from error
        yield files
    finally:
        for partial in files.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)
