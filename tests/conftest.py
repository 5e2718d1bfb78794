"""What several test modules share: tiny models, and bundles exported from them once for the whole run."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import pytest
from hypothesis import settings

# Imports and caches make the first example slow. CI draws the same examples each time; to look for new ones, run
# pytest with --hypothesis-profile=explore.
settings.register_profile("explore", deadline=None)
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tied random Llama in a Hugging Face folder."""
    from tiny import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tied=True)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_folder, tmp_path_factory):
    """That model as a bundle for ONNX Runtime, in fp32."""
    from pocketlm.runtimes.build import export

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export(str(tiny_folder), folder, recipe="fp32", context=256)
    return folder
