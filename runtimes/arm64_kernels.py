"""Which of a core's instructions for int8 really ran, from the emulator's log of what it translated.

The emulator translates an instruction when it is first about to run; so the numbers count places in the code, not how
often they were passed. The log's own disassembler is older than these instructions: they are told by their encoding
(Arm Architecture Reference Manual for A-profile, DDI 0487, chapters C7 and C8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_VECTOR, _ELEMENT, _FIXED = 0xBFE0FC00, 0xBFC0F400, 0xFFE0FC00

# name -> (fixed bits, their mask), one for each form: NEON by vector and by element, SVE by vector and by element.
INSTRUCTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "sdot": ((0x0E809400, _VECTOR), (0x0F80E000, _ELEMENT), (0x44800000, _FIXED), (0x44A00000, _FIXED)),
    "udot": ((0x2E809400, _VECTOR), (0x2F80E000, _ELEMENT), (0x44800400, _FIXED), (0x44A00400, _FIXED)),
    "usdot": ((0x0E809C00, _VECTOR), (0x0F80F000, _ELEMENT), (0x44807800, _FIXED), (0x44A01800, _FIXED)),
    "smmla": ((0x4E80A400, _FIXED), (0x45009800, _FIXED)),
    "ummla": ((0x6E80A400, _FIXED), (0x45C09800, _FIXED)),
    "usmmla": ((0x4E80AC00, _FIXED), (0x45809800, _FIXED)),
    "smopa": ((0xA0800000, 0xFFE0001C),),
    "smlal": ((0x0E608000, _VECTOR), (0x0F402000, _ELEMENT)),  # int16: what int8 kernels use without dot products
}
_LINE = re.compile(rb"^0x[0-9a-f]+:\s+([0-9a-f]{8})\s", re.MULTILINE)


def count_instructions(log: Path) -> dict[str, int]:
    """How many places of each kind ran; kinds that did not run are left out."""
    found = dict.fromkeys(INSTRUCTIONS, 0)
    with log.open("rb") as file:
        while lines := file.readlines(1 << 22):
            for match in _LINE.finditer(b"".join(lines)):
                name = name_of(int(match[1], 16))
                if name is not None:
                    found[name] += 1
    return {name: count for name, count in found.items() if count}


def name_of(word: int) -> str | None:
    """The instruction that a 32-bit word encodes, if it is one of ``INSTRUCTIONS``."""
    for name, forms in INSTRUCTIONS.items():
        if any(word & mask == bits for bits, mask in forms):
            return name
    return None
