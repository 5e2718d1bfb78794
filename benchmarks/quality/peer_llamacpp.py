"""llama.cpp's own quantisers, called in the library that the package xllamacpp carries.

Usage: python peer_llamacpp.py IN OUT Q4_0|Q4_K_M

IN and OUT are safetensors: weights (out, in) in float32, and the same quantised and dequantised. Which type each tensor
gets follows llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp): in Q4_K_M half of the value and down
projections get Q6_K, and where 256 does not divide the columns Q4_K falls back to Q5_0 and Q6_K to Q8_0.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import numpy as np
import xllamacpp
from safetensors.numpy import load_file, save_file

# ggml type -> (number in ggml.h, values of a block, bytes of a block)
TYPES = {"Q4_0": (2, 32, 18), "Q5_0": (6, 32, 22), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def library() -> ctypes.CDLL:
    """The shared object with llama.cpp inside."""
    found = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return found


def type_of(name: str, columns: int, layers: int, method: str) -> str:
    """The ggml type of a tensor."""
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        wanted = "Q6_K"
    elif method == "Q4_0":
        return "Q4_0"
    else:
        match = re.search(r"layers\.(\d+)\.", name)
        layer = int(match.group(1)) if match else 0
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        wanted = "Q6_K" if more and ("v_proj" in name or "down_proj" in name) else "Q4_K"
    return wanted if columns % 256 == 0 else FALLBACK[wanted]


def packed(found: ctypes.CDLL, weight: np.ndarray, kind: str) -> np.ndarray:
    """The blocks of a weight, as bytes."""
    number, block, size = TYPES[kind]
    weight = np.ascontiguousarray(weight, np.float32)
    blocks = np.empty(weight.size // block * size, np.uint8)
    written = found.ggml_quantize_chunk(number, weight.ctypes.data, blocks.ctypes.data, 0, *weight.shape, None)
    assert written == blocks.size, (written, blocks.size)
    return blocks


def quantised(found: ctypes.CDLL, weight: np.ndarray, kind: str) -> tuple[np.ndarray, int]:
    """The weight after a round trip, and the bytes in between."""
    blocks = packed(found, weight, kind)
    result = np.empty(weight.shape, np.float32)
    unpack = getattr(found, f"dequantize_row_{kind.replace('Q', 'q')}")
    unpack.argtypes, unpack.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    unpack(blocks.ctypes.data, result.ctypes.data, weight.size)
    return result, blocks.size


def main() -> None:
    """Quantise every weight of IN."""
    source, out, method = sys.argv[1:]
    weights, found = load_file(source), library()
    layers = 1 + max(int(match.group(1)) for name in weights if (match := re.search(r"layers\.(\d+)\.", name)))
    result, size = {}, 0
    for name, weight in weights.items():
        result[name], part = quantised(found, weight, type_of(name, weight.shape[1], layers, method))
        size += part
    save_file(result, out, {"bytes": str(size)})


if __name__ == "__main__":
    main()
