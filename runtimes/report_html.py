"""The page of a report: one HTML file without scripts that loads nothing, the same bytes for the same inputs."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from .._version import __version__
from .evaluation_report import by_layer
from .plain_text import plain
from .report_facts import (
    ERRORS,
    certificate_table,
    commands,
    file_table,
    has_quantised_cache,
    layer_errors,
    layer_table,
    model_table,
    recipe_toml,
    size_table,
    source_table,
    verdict,
)
from .report_measured import phone_table, plan_tables, quality_tables, replay_tables, speed_tables, unverified
from .report_pictures import certificate_picture, layer_picture, peers_picture, size_picture, stream_picture
from .report_read import ReportData

_SECTIONS = (
    ("model", "Model"), ("size", "Size"), ("certificate", "Certificate"), ("layers", "Error by layer"),
    ("quality", "Quality"), ("speed", "Speed"), ("phones", "Phones"), ("licence", "Licence"),
    ("reproduce", "Reproduce"), ("unverified", "What was not verified"),
)  # fmt: skip
_DATA = Path(__file__).parent / "data"


def report_page(data: ReportData) -> str:
    """The HTML of a report. Text that came with the bundle is escaped: it cannot run, load, or leave its place.

    The page's policy (Content Security Policy level 3) allows its own style, by hash, and nothing else.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def printable(value: Any) -> Any:
        return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, finalize=printable, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((_DATA / "report.html.jinja").read_text(encoding="utf-8"))
    style = (_DATA / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    pictures = {name: Markup(svg) for name, svg in _pictures(data).items()}
    return template.render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        streams=[(title, Markup(svg)) for title, svg in _streams(data)],
        peers_pictures=[Markup(svg) for svg in _peers_pictures(data)],
        **_texts(data),
        **_tables(data),
        **pictures,
    ).lstrip()


def _texts(data: ReportData) -> dict[str, Any]:
    manifest = data.manifest
    recipe = recipe_toml(data)
    errors = layer_errors(data)
    targets = data.certificate.targets
    return {
        "version": __version__,
        "name": plain(manifest.name, 200),
        "summary": f"A pocketlm bundle for {', '.join(manifest.targets) or 'no target'}: "
        f"{data.config.model_type}, recipe {data.recipe.name if data.recipe else 'unknown'}.",
        "verdict": verdict(data),
        "sections": _SECTIONS,
        "errors": {name: text for name, text in ERRORS.items() if name != "cache" or has_quantised_cache(data)},
        "lint": [(name, target.lint) for name, target in targets.items() if target.lint],
        "layer_words": _layer_words(data),
        "largest_error": f"{100 * max((e for row in errors.values() for e in row.values()), default=0):.2f} %",
        "licence": manifest.licence or "The source files state no licence: ask whoever made them before you ship them.",
        "made_by": manifest.pocketlm,
        "commands": commands(data),
        "recipe": None if recipe is None else recipe.splitlines(),
        "manifest_sha256": data.manifest_sha256,
        "runners": [f"{name} was run by {target.evaluated_by}" for name, target in targets.items()],
        "notes": manifest.notes,
        "unverified": unverified(data),
    }


def _tables(data: ReportData) -> dict[str, Any]:
    return {
        "model": model_table(data),
        "sources": source_table(data),
        "sizes": size_table(data),
        "certificate": certificate_table(data),
        "layers": layer_table(data),
        "quality": quality_tables(data),
        "speed": speed_tables(data),
        "replays": replay_tables(data),
        "plans": plan_tables(data),
        "phones": phone_table(data),
        "files": file_table(data),
    }


def _pictures(data: ReportData) -> dict[str, str]:
    return {
        "size_picture": size_picture(data),
        "certificate_picture": certificate_picture(data),
        "layer_picture": layer_picture(data),
    }


def _peers_pictures(data: ReportData) -> list[str]:
    pictures = [peers_picture(number, found) for number, found in enumerate(data.peers.values(), 1)]
    return [picture for picture in pictures if picture]


def _layer_words(data: ReportData) -> str:
    if data.recipe is not None and data.recipe.method != "rtn":
        return (
            "How much quantising changed each matrix, as recorded at export: relative error of its outputs over the "
            "calibration text where it was calibrated, of its values elsewhere."
        )
    return "How much quantising changed each matrix, as recorded at export: relative error of its values."


def _streams(data: ReportData) -> list[tuple[str, str]]:
    """A picture for each candidate of an evaluation whose layers were compared with the source's."""
    found: list[tuple[str, str]] = []
    for file, evaluation in data.evaluations.items():
        for name, candidate in evaluation.candidates.items():
            layers = by_layer(candidate.layer_errors or {})
            stream = {layer: next(iter(row.values())) for layer, row in sorted(layers.items())}
            picture = stream_picture(len(found) + 1, name, stream)
            if picture:
                found.append((f"{name}, from {file}", picture))
    return found
