"""Models from the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..errors import InputError

# Weights as safetensors only, and no code: nothing that is downloaded can run.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "README.md", "LICENSE*")
_UNWANTED = ("*/*", "consolidated*", "*.bin", "*.py")

_CONNECT_SECONDS = 2.0  # the Hub's own client tries again for half a minute

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
    return _asked(
        model,
        lambda cached: snapshot_download(
            model, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=cached
        ),
    )


def download_config(model: str) -> Path:
    """The config.json of a Hub model, and nothing else; raises as ``download`` does."""
    from huggingface_hub import hf_hub_download

    return _asked(model, lambda cached: hf_hub_download(model, "config.json", local_files_only=cached))


def is_reachable(url: str, seconds: float = _CONNECT_SECONDS) -> bool:
    """Whether somebody accepts a connection there, or at the proxy that leads there, within so many seconds."""
    place = urlsplit(url)
    proxy = getproxies().get(place.scheme)
    if proxy and not proxy_bypass(place.hostname or ""):
        place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = place.port or {"http": 80, "https": 443}.get(place.scheme, 1080)
    connected: list[bool] = []

    def connect() -> None:
        with suppress(OSError), socket.create_connection((place.hostname or "", port), seconds):
            connected.append(True)

    thread = Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    thread.start()
    thread.join(seconds)
    return bool(connected)


def _asked(model: str, call: Callable[[bool], str]) -> Path:
    """What the Hub's client answers, its errors in words; ``call`` is told to look into its cache only, or not."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(call(not is_reachable(constants.ENDPOINT)))
    except GatedRepoError as error:
        raise InputError(
            f"{model}: asks for its terms to be accepted; do so on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{model}: no such file or folder, and no such model on the Hub (or it is private)") from error
    except RemoteEntryNotFoundError as error:
        raise InputError(
            f"{model}: this repository of the Hub has no config.json, so it is no model of ours"
        ) from error
    except Exception as error:  # without a network the client hands on the errors of whatever library it stands on
        raise InputError(
            f"{model}: no such file or folder, and the Hub cannot be reached ({type(error).__name__}); "
            "check the network, or give a folder"
        ) from error
