"""Check that native libraries lie in an APK as phones with large pages need it: python3 check_apk.py APK PAGE

Stored, at a multiple of the page in the file, with every LOAD segment aligned to the page (ELF-64, program headers).
"""

import struct
import sys
import zipfile

_LOAD = 1


def load_alignments(library: bytes) -> list[int]:
    """The alignments of an ELF file's LOAD segments."""
    if library[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (start,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<II6Q", library, start + i * size) for i in range(count)]
    return [header[7] for header in headers if header[0] == _LOAD]


def data_offset(apk: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data start in the file."""
    apk.fp.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", apk.fp.read(4))
    return entry.header_offset + 30 + name + extra


def problems(path: str, page: int) -> list[str]:
    """One line for each library that is not as it should be."""
    found = []
    with zipfile.ZipFile(path) as apk:
        libraries = [entry for entry in apk.infolist() if entry.filename.endswith(".so")]
        if not libraries:
            found.append("there are no native libraries")
        for entry in libraries:
            alignments = load_alignments(apk.read(entry))
            if entry.compress_type != zipfile.ZIP_STORED:
                found.append(f"{entry.filename} is compressed")
            if data_offset(apk, entry) % page:
                found.append(f"{entry.filename} does not start at a page")
            if not alignments or any(alignment % page for alignment in alignments):
                found.append(f"{entry.filename} has LOAD segments aligned to {alignments}")
            print(f"{entry.filename}: LOAD segments aligned to {sorted(set(alignments))}, stored at a page")
    return found


if __name__ == "__main__":
    lines = problems(sys.argv[1], int(sys.argv[2]))
    sys.exit("; ".join(lines) or 0)
