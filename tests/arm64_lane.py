"""The arm64 lane for tests: skipped, with a plain message, where it was not prepared."""

import os
import subprocess

import pytest
from pocketlm.errors import InputError
from pocketlm.runtimes.arm64_lane import PYTHON, find_lane


def prepared_lane():
    """The emulated lane, or the test is skipped."""
    try:
        lane = find_lane()
    except InputError as error:
        pytest.skip(str(error))
    if lane is None:
        pytest.skip("this machine is arm64 itself: nothing is emulated")
    return lane


def run_on(lane, core, script, *arguments):
    """What a script prints in the emulated Python."""
    command = [*lane.emulated(core), str(lane.folder / PYTHON), "-S", "-c", script, *map(str, arguments)]
    environment = {**os.environ, **lane.environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
