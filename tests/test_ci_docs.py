"""The workflow that users copy: valid YAML, whose every pocketlm command is one that there is."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from pocketlm.runtimes.cli import _spread, main

DOCS = Path(__file__).parent.parent / "docs"


def steps():
    workflow = yaml.safe_load((DOCS / "pocketlm.yml").read_text())
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(text):
    """The arguments of each pocketlm command in a shell script."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.strip().startswith("pocketlm "):
            yield shlex.split(re.split(r"\s[>#]", line.strip())[0])[1:]


def parse(arguments):
    """Raise click's error if there is no such command or option."""
    command, context = main, click.Context(main)
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, _spread(arguments))


def test_every_command_of_the_workflow_exists():
    found = [arguments for step in steps() for arguments in commands(step.get("run", ""))]
    assert [arguments[0] for arguments in found] == ["export", "device", "verify", "compare"]
    for arguments in found:
        parse(arguments)
    with pytest.raises(click.UsageError):
        parse([*found[0], "--no-such-option"])


def test_every_command_of_the_page_exists():
    block = re.search(r"```\n(.*?)```", (DOCS / "ci.md").read_text(), re.DOTALL)[1]
    found = list(commands(block))
    assert len(found) == 4
    for arguments in found:
        parse(arguments)


def test_the_certificate_that_is_uploaded_is_the_one_that_is_compared():
    text = (DOCS / "pocketlm.yml").read_text()
    assert "--json > certificate.json" in text
    assert "compare old/certificate.json new/certificate.json" in text
