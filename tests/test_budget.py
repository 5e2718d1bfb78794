"""Formats by layer under a budget: the choice, the measurement behind it, and the recipe that comes out."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.export.config import parse_config
from pocketlm.export.open_checkpoint import open_checkpoint
from pocketlm.export.sensitivity import group_sensitivities
from pocketlm.export.to_torch import reference_logits
from pocketlm.quantize.allocate import Choice, allocate
from pocketlm.quantize.recipe import Format, load_recipe
from pocketlm.quantize.rtn import round_to_nearest
from pocketlm.runtimes.budget import parse_size
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.metrics import deviation
from tiny import tiny_llama

FOUR, EIGHT = Format("int4", 32), Format("int8")


@st.composite
def problems(draw):
    layers = draw(st.integers(1, 5))
    return {
        f"layer {index}": [
            Choice(FOUR, size, kl)
            for size, kl in draw(
                st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10, width=16)), min_size=1, max_size=4)
            )
        ]
        for index in range(layers)
    }


@given(problems(), st.integers(1, 150))
def test_the_choice_is_within_one_upgrade_of_the_best(choices, budget):
    found = allocate(choices, budget)
    fitting = [
        sum(choice.kl for choice in combination)
        for combination in itertools.product(*choices.values())
        if sum(choice.size_bytes for choice in combination) <= budget
    ]
    if not fitting:
        assert found is None
        return
    assert sum(choice.size_bytes for choice in found.values()) <= budget
    largest = max(max(c.kl for c in options) - min(c.kl for c in options) for options in choices.values())
    assert (
        sum(choice.kl for choice in found.values()) <= min(fitting) + len(choices) * largest * (len(choices) > 1) + 1e-6
    )


def test_bytes_go_where_they_buy_most():
    choices = {
        "sensitive": [Choice(FOUR, 10, 5.0), Choice(EIGHT, 20, 0.0)],
        "robust": [Choice(FOUR, 10, 0.1), Choice(EIGHT, 20, 0.0)],
    }
    found = allocate(choices, 30)
    assert (found["sensitive"].format, found["robust"].format) == (EIGHT, FOUR)
    assert allocate(choices, 19) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose rows 128 divides in some places and only 32 in others."""
    return tiny_llama(tmp_path_factory.mktemp("m") / "m", tied=True, intermediate=160)


def test_a_sensitivity_is_the_kl_of_the_model_with_that_group_rounded(folder):
    checkpoint = open_checkpoint(str(folder))
    config = parse_config(checkpoint.config)
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    prefix = "model.layers."
    groups = [
        tuple(f"{prefix}0.self_attn.{part}_proj.weight" for part in "qkv"),
        (f"{prefix}0.mlp.down_proj.weight",),
        (f"{prefix}1.self_attn.o_proj.weight",),
    ]
    tokens = np.random.default_rng(0).integers(3, 512, (2, 30))
    found = group_sensitivities(weights, config, dict.fromkeys(groups, FOUR), tokens, lambda: None, 2)
    assert list(found) == groups
    source = reference_logits(weights, config, tokens)
    for names in groups:
        variant = weights | {name: round_to_nearest(weights[name], 4, 32) for name in names}
        assert found[names] == pytest.approx(deviation(source, reference_logits(variant, config, tokens)).kl, rel=1e-3)


@pytest.mark.parametrize(("option", "value"), [("--bits", "5.5"), ("--size", "107kB")])
def test_an_export_keeps_to_its_budget_and_says_what_it_chose(folder, tmp_path, option, value):
    arguments = ["export", str(folder), "--recipe", "int4-rtn", "--context", "64", "--json"]
    assert run([*arguments, "-o", str(tmp_path / "b"), option, value]) == 0
    recipe = load_recipe(str(tmp_path / "b" / "recipe.toml"))
    prints = json.loads((tmp_path / "b" / "pocketlm.json").read_text())["weights"]
    bits = size = count = 0
    for name, entry in prints.items():
        form, *rest = entry["format"].split()
        shape = [int(part) for part in rest[-1].split("x")]
        values = int(np.prod(shape))
        if "codes" not in entry:
            size += 2 * values
            continue
        group = int(rest[0][1:])
        stored = values * int(form[3]) / 8 + 2 * values / group
        size += stored
        if "_proj" in name:
            bits, count = bits + 8 * stored, count + values
            wanted = recipe.format_of(name)
            assert (form, group) == (wanted.kind, wanted.group or shape[1])
    assert len({str(recipe.format_of(name)) for name in prints if "_proj" in name}) > 1
    assert bits / count <= 5.5 if option == "--bits" else size <= 107_000
    assert bits / count > 5.2 if option == "--bits" else size > 103_000
    assert run([*arguments, "-o", str(tmp_path / "again"), "--recipe", str(tmp_path / "b" / "recipe.toml")]) == 0
    assert json.loads((tmp_path / "again" / "pocketlm.json").read_text())["weights"] == prints


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bits", "3"], "3-bits is too little: the smallest formats take 4.28 bits"),
        (["--size", "many"], "a size is written like 90MB"),
        (["--size", "1kB", "--bits", "5"], "not both"),
        (["--size", "1kB"], "0.001MB is too little"),
        (["--bits", "nan"], "a number from 2 to 16, not nan"),
        (["--size", "9" * 400 + "MB"], "a size is written like 90MB"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_one_line(folder, tmp_path, capsys, arguments, expected):
    assert run(["export", str(folder), "-o", str(tmp_path / "b"), *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_read_in_decimal_units():
    assert [parse_size(text) for text in ("90MB", "1.5 GB", "90000000", "12k")] == [90e6, 1.5e9, 90e6, 12e3]
    for text in ("", "-1MB", "0", "1TBx"):
        with pytest.raises(InputError):
            parse_size(text)
