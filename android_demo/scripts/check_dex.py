"""Check that a dex file holds every class that was compiled: python3 check_dex.py DEXDUMP_OUTPUT CLASSES_FOLDER"""

import re
import sys
from pathlib import Path


def main(dump: str, classes: str) -> None:
    """Exit with a message if a class is missing."""
    text = Path(dump).read_text(encoding="utf-8", errors="replace")
    if "'038'" not in text:
        sys.exit("the dex file is not of version 038, that of Android 8")
    headers = re.search(r"class_defs_size\s*:\s*(\d+)", text)
    compiled = sum(1 for _ in Path(classes).rglob("*.class"))
    if headers is None or int(headers[1]) != compiled:
        sys.exit(f"the dex file has {headers and headers[1]} classes, {compiled} were compiled")
    print(f"classes.dex: version 038, {compiled} classes, as many as were compiled")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
