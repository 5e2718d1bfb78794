"""A model card: Markdown with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.hub import is_hub_id
from .plain_text import plain
from .report_facts import (
    Table,
    certificate_table,
    commands,
    model_table,
    recipe_toml,
    size_table,
    source_table,
    verdict,
)
from .report_measured import phone_table, plan_tables, quality_tables, replay_tables, speed_tables, unverified
from .report_read import ReportData

# What has a meaning in the middle of a line (GitHub's and the Hub's dialect: pipes of tables, $ of formulas, addresses
# that become links by themselves), and what has one at its beginning.
_INSIDE = re.compile(r"[\\`*_{}\[\]|~$]")
_ADDRESS = re.compile(r"(?i)(://|www\.)")
_FIRST = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[-+#=]))")


def model_card(data: ReportData, base_model: str | None = None) -> str:
    """The card as text. ``base_model`` is the source's Hub id; raises InputError if it is none."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(**_metadata(data, base_model)).to_yaml(line_break="\n")
    return f"---\n{header}\n---\n\n" + "\n".join(_body(data)) + "\n"


def _metadata(data: ReportData, base_model: str | None) -> dict[str, Any]:
    if base_model is not None and not is_hub_id(base_model):
        raise InputError(f"--base-model {base_model}: is not a Hub id; give ORG/NAME")
    source = base_model or (data.manifest.name if is_hub_id(data.manifest.name) else None)
    chat = ["conversational"] if "chat_template.jinja" in data.manifest.files else []
    recipe = [data.recipe.name] if data.recipe and re.fullmatch(r"[\w.-]{1,60}", data.recipe.name) else []
    return {
        **_licence(data.manifest.licence),
        "library_name": "pocketlm",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*data.manifest.targets, *chat, "on-device", "quantized", *recipe])),
        **({} if source is None else {"base_model": source, "base_model_relation": "quantized"}),
    }


def _licence(stated: str | None) -> dict[str, str]:
    """As the Hub wants it: one of those that it knows, or "other" with a name of its own.

    hub_licences.txt is what the Hub itself lists when it is given another one.
    """
    if stated is None:
        return {"license": "unknown"}
    if stated.lower() in (Path(__file__).parent / "data" / "hub_licences.txt").read_text(encoding="utf-8").split():
        return {"license": stated.lower()}
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-")[:100] or "unnamed",
    }


def _body(data: ReportData) -> list[str]:
    found = verdict(data)
    lines = [f"# {_text(data.manifest.name, 200)}", "", f"**{_text(found.headline)}.**", ""]
    lines += [f"- {_text(line)}" for line in found.lines] + ([""] if found.lines else [])
    lines += _table(model_table(data)) + _table(source_table(data)) + _table(size_table(data))
    lines += ["## Certificate", ""]
    certificate = certificate_table(data)
    lines += _table(certificate) if certificate.rows else ["There is none: nothing was verified.", ""]
    for title, tables in (
        ("Quality", quality_tables(data)),
        ("Speed", speed_tables(data)),
        ("Phones", (*replay_tables(data), *plan_tables(data), *_phones(data))),
    ):
        if tables:
            lines += [f"## {title}", "", *(line for table in tables for line in _table(table))]
    lines += _use(data) + _reproduce(data)
    return [*lines, "## What was not verified", "", *(f"- {_text(line)}" for line in unverified(data))]


def _phones(data: ReportData) -> tuple[Table, ...]:
    return (phone_table(data),) if data.manifest.targets else ()


def _use(data: ReportData) -> list[str]:
    lines = [
        "## Use",
        "",
        "```",
        'pocketlm chat . --prompt "What is the capital of France?"',
        "pocketlm verify .",
        "```",
    ]
    words = {
        "onnx": "`onnx/` loads in onnxruntime-genai.",
        "executorch": "`executorch/model.pte` runs in ExecuTorch's TextLLMRunner.",
        "coreml": "`coreml/model.mlpackage` is stateful, for iOS 18 and later.",
    }
    return [*lines, "", *(f"- {words[target]}" for target in data.manifest.targets), ""]


def _reproduce(data: ReportData) -> list[str]:
    """Indented, not fenced: no line of a name can end an indented block."""
    lines = ["## Reproduce", "", f"In a checkout of pocketlm {_text(data.manifest.pocketlm)}:", ""]
    lines += [f"    {plain(line)}" for line in commands(data)]
    recipe = recipe_toml(data)
    if recipe is not None:
        lines += ["", "Its recipe.toml:", "", *(f"    {plain(line)}".rstrip() for line in recipe.splitlines())]
    return [*lines, "", f"sha256 of pocketlm.json: {data.manifest_sha256}", ""]


def _table(table: Table) -> list[str]:
    heads = [_text(head) for head in table.heads]
    lines = [f"*{_text(table.caption)}*", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(map(_text, row))} |" for row in table.rows]
    return [*lines, "", *([_text(table.note), ""] if table.note else [])]


def _text(text: str, longest: int = 2000) -> str:
    """As a line of Markdown that shows this text and nothing else."""
    escaped = _INSIDE.sub(r"\\\g<0>", escape(plain(text, longest).strip(" "), quote=False))
    escaped = _ADDRESS.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", escaped)
    return _FIRST.sub(r"\1\\", escaped)
