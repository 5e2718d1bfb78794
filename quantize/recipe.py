"""Recipes: which number format each weight gets, and how its integers are chosen. Built-in names, and TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Format:
    """How one weight is stored.

    kind   int4 or int8 (quantised), fp16 or fp32 (dense)
    group  input columns that share a scale; None is a whole row; meaningless for dense kinds
    """

    kind: str
    group: int | None = None

    @property
    def bits(self) -> int | None:
        """Bits of a code; None where weights stay floating point."""
        return {"int4": 4, "int8": 8}.get(self.kind)

    def __str__(self) -> str:
        return self.kind if self.group is None else f"{self.kind} g{self.group}"


GROUPS = (32, 64, 128)
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
METHODS = ("rtn", "layerwise", "calibrated", "tuned")


@dataclass(frozen=True)
class Recipe:
    """Formats of a model's weights.

    method      how the integers of linears are chosen: "rtn" rounds each weight to nearest; "layerwise" chooses them
                together, for the inputs that each layer sees when the model reads a text; "calibrated" then trains
                scales and norms for a while on the source model's predictions, and "tuned" four times as long
    linear      of every linear layer
    embedding   of the embedding table and the head (which is the same table in a tied model)
    overrides   name pattern (shell style, over checkpoint names) -> format; the last match wins
    thresholds  changes to the limits of the certificate, by the names that ``runtimes/thresholds.py`` lists
    smaller_groups  a matrix whose columns the group does not divide gets the largest smaller one that does, instead of
                being refused
    """

    name: str
    linear: Format
    embedding: Format
    overrides: Mapping[str, Format] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    method: str = "rtn"
    smaller_groups: bool = False

    def format_of(self, name: str) -> Format:
        """The format of the weight with this checkpoint name.

        Learned positions and the routers of experts stay dense: the first are added as they are, the second decide
        which weights are right, and both are small.
        """
        if name == "model.embed_positions.weight" or name.endswith(".mlp.gate.weight"):
            return Format("fp32" if self.linear.kind == "fp32" else "fp16")
        chosen = self.embedding if name in _TABLES else self.linear
        for pattern, override in self.overrides.items():
            if fnmatchcase(name, pattern):
                chosen = override
        return chosen

    def is_calibrated(self, name: str) -> bool:
        """Whether the weight's integers depend on a calibration text, if it is a linear layer's.

        A head of 8 bits does not need that: rounded to nearest, it loses next to nothing.
        """
        bits = self.format_of(name).bits
        return self.method != "rtn" and (bits == 4 if name in _TABLES else bits is not None)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for the manifest."""
        return asdict(self)


_INT4_G64 = Format("int4", 64)
_INT8 = Format("int8")  # one scale for each row: the form that every target has

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("int4", Format("int4", 32), _INT8, method="calibrated"),
        Recipe("int4-g64", Format("int4", 64), _INT8, method="calibrated"),
        Recipe("int4-g128", Format("int4", 128), _INT8, method="calibrated"),
        Recipe("int4-fast", _INT4_G64, _INT4_G64, method="calibrated", smaller_groups=True),
        Recipe("int4-tuned", Format("int4", 32), _INT8, method="tuned"),
        Recipe("int4-g64-tuned", Format("int4", 64), _INT8, method="tuned"),
        Recipe("int4-rtn", Format("int4", 32), _INT8),
        Recipe("int4-g64-rtn", Format("int4", 64), _INT8),
        Recipe("int4-g128-rtn", Format("int4", 128), _INT8),
        Recipe("int4-fast-rtn", _INT4_G64, _INT4_G64, smaller_groups=True),
        Recipe("int8", _INT8, _INT8, method="layerwise"),
        Recipe("int8-rtn", _INT8, _INT8),
        Recipe("fp16", Format("fp16"), Format("fp16")),
        Recipe("fp32", Format("fp32"), Format("fp32")),
    )
}


# The fastest of those whose KL on SmolLM2 is below .6 of llama.cpp's Q4_0 and whose file is no larger: README, "Speed".
DEFAULT_RECIPE = "int4-fast"

_KEYS = ("base", "method", "linear", "embedding", "overrides", "thresholds")


def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or a recipe from a .toml file.

        base = "int4"                       # a built-in recipe to start from
        method = "rtn"                      # or "layerwise", "calibrated", "tuned"
        embedding = { kind = "int8" }       # or linear = ...
        [overrides]
        "model.layers.0.*" = { kind = "int8" }
        [thresholds]
        "quantization.kl" = 0.5

    Raises InputError for an unknown name, a file that cannot be read, or anything in it that is not understood.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".toml"):
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}, or a path to a .toml file")
    path = Path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"recipe {name}: cannot be read ({error})") from error
    return parse_recipe(content, path.stem)


def parse_recipe(content: Mapping[str, Any], name: str) -> Recipe:
    """Build a recipe from the content of a TOML file; ``name`` is the recipe's own name."""
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise InputError(f"recipe {name}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    given = content.get("base", "int4")
    base = RECIPES.get(given) if isinstance(given, str) else None
    if base is None:
        raise InputError(f"recipe {name}: no built-in recipe {given!r}; there are {', '.join(RECIPES)}")
    method = content.get("method", base.method)
    if method not in METHODS:
        raise InputError(f"recipe {name}: method must be {', '.join(METHODS)}, it is {method!r}")
    overrides, thresholds = content.get("overrides", {}), content.get("thresholds", {})
    if not isinstance(overrides, Mapping) or not isinstance(thresholds, Mapping):
        raise InputError(f"recipe {name}: overrides and thresholds must be tables")
    for key, value in thresholds.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0 or _overflows(value):
            raise InputError(f"recipe {name}: threshold {key} must be a number of at least 0, it is {value!r}")
    return Recipe(
        name=name,
        linear=_parse_format(content["linear"], name) if "linear" in content else base.linear,
        embedding=_parse_format(content["embedding"], name) if "embedding" in content else base.embedding,
        overrides={pattern: _parse_format(given, name) for pattern, given in overrides.items()},
        thresholds={key: float(value) for key, value in thresholds.items()},
        method=method,
        smaller_groups=base.smaller_groups,
    )


def _overflows(value: float) -> bool:
    """Whether a whole number is more than a float takes, as TOML knows no limit."""
    try:
        float(value)
    except OverflowError:
        return True
    return False


def _parse_format(given: Any, recipe: str) -> Format:
    if not isinstance(given, Mapping) or set(given) - {"kind", "group"}:
        raise InputError(f'recipe {recipe}: a format is written {{ kind = "int4", group = 32 }}, not {given!r}')
    kind, group = given.get("kind"), given.get("group")
    if kind not in ("int4", "int8", "fp16", "fp32"):
        raise InputError(f"recipe {recipe}: kind must be int4, int8, fp16 or fp32, it is {kind!r}")
    if group is not None and (kind != "int4" or not isinstance(group, int) or group not in GROUPS):
        raise InputError(
            f"recipe {recipe}: only int4 has groups, of 32, 64 or 128 columns; this is {kind} with {group!r}"
        )
    if kind == "int4" and group is None:
        raise InputError(f"recipe {recipe}: int4 needs a group of 32, 64 or 128")
    return Format(kind, group)


def recipe_to_toml(recipe: Recipe, note: str = "") -> str:
    """A recipe as the content of a TOML file that ``load_recipe`` reads; ``note`` stands above it as a comment."""
    lines = [f"# {line}" for line in note.splitlines()]
    lines += [f'method = "{recipe.method}"', f"linear = {_format_to_toml(recipe.linear)}"]
    lines += [f"embedding = {_format_to_toml(recipe.embedding)}", "", "[overrides]"]
    lines += [f'"{pattern}" = {_format_to_toml(form)}' for pattern, form in recipe.overrides.items()]
    lines += ["", "[thresholds]", *(f'"{key}" = {value!r}' for key, value in recipe.thresholds.items())]
    return "\n".join(lines) + "\n"


def _format_to_toml(form: Format) -> str:
    group = "" if form.group is None else f", group = {form.group}"
    return f'{{ kind = "{form.kind}"{group} }}'
