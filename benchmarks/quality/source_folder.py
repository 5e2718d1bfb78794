"""A checkpoint as a folder that transformers, and what stands on it, reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file


def hugging_face_folder(checkpoint: Any, out: Path) -> Path:
    """``out``, with the checkpoint's weights, configuration and tokenizer; made once."""
    if not (out / "config.json").is_file():
        out.mkdir(exist_ok=True)
        for name, content in checkpoint.tokenizer_files().items():
            (out / name).write_bytes(content)
        save_file({n: checkpoint.read(n) for n in checkpoint.names()}, out / "model.safetensors", {"format": "pt"})
        (out / "config.json").write_text(json.dumps(dict(checkpoint.config)))
    return out
