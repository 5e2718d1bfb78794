"""Models from the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError

# Weights as safetensors only, and no code: nothing that is downloaded can run.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "README.md", "LICENSE*")
_UNWANTED = ("*/*", "consolidated*", "*.bin", "*.py")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(model: str) -> bool:
    """Whether a string has the form of a Hub id, ``organisation/name``."""
    return _HUB_ID.fullmatch(model) is not None and not model.endswith((".gguf", ".git"))


def download(model: str) -> Path:
    """The folder of a Hub model; what is cached already is not downloaded again.

    Raises InputError if it does not exist, needs permission, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    wanted, unwanted = list(_WANTED), list(_UNWANTED)
    return _asked(model, lambda: snapshot_download(model, allow_patterns=wanted, ignore_patterns=unwanted))


def download_config(model: str) -> Path:
    """The config.json of a Hub model, and nothing else; raises as ``download`` does."""
    from huggingface_hub import hf_hub_download

    return _asked(model, lambda: hf_hub_download(model, "config.json"))


def _asked(model: str, call: Callable[[], str]) -> Path:
    """What the Hub's client answers, its errors in words."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(call())
    except GatedRepoError as error:
        raise InputError(
            f"{model}: asks for its terms to be accepted; do so on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{model}: no such file or folder, and no such model on the Hub (or it is private)") from error
    except Exception as error:  # without a network the client hands on the errors of whatever library it stands on
        raise InputError(
            f"{model}: no such file or folder, and the Hub cannot be reached ({type(error).__name__}); "
            "check the network, or give a folder"
        ) from error
