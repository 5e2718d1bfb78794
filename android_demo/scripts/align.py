"""Align the stored entries of a zip file: native libraries to memory pages, all others to 4 bytes.

    python3 align.py IN OUT PAGE

Debian's zipalign knows pages of 4 KB; newer phones have 16 KB. Alignment is padding in the extra field of an entry, as
zipalign makes it (id 0xd935, of APK Signature Scheme v2's description).
"""

import struct
import sys
import zipfile

_HEADER = 30  # bytes of a local file header before its name
_EXTRA_ID = 0xD935


def padding(offset: int, alignment: int) -> bytes:
    """An extra field after which data start at a multiple of ``alignment``; ``offset`` is where they would start."""
    if offset % alignment == 0:
        return b""
    size = -(offset + 6) % alignment
    return struct.pack("<HHH", _EXTRA_ID, size + 2, alignment) + bytes(size)


def align(source: str, target: str, page: int) -> None:
    """Write an aligned copy."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            copied = zipfile.ZipInfo(entry.filename, (1981, 1, 1, 1, 1, 2))  # the same bytes give the same APK
            copied.compress_type = entry.compress_type
            copied.external_attr = entry.external_attr
            if entry.compress_type == zipfile.ZIP_STORED:
                start = new.fp.tell() + _HEADER + len(entry.filename.encode())
                copied.extra = padding(start, page if entry.filename.endswith(".so") else 4)
            new.writestr(copied, data)


if __name__ == "__main__":
    align(sys.argv[1], sys.argv[2], int(sys.argv[3]))
