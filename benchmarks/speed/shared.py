"""What benchmarks/quality has that is used here, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "quality"))

from peer_llamacpp import TYPES, library, packed, type_of
from source_folder import hugging_face_folder
from text import brown

__all__ = ["TYPES", "brown", "hugging_face_folder", "library", "packed", "type_of"]
