"""`report`: the page and the card, of sound bundles, of hostile ones, and of those that were never verified."""

import base64
import copy
import hashlib
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt
from pocketlm.errors import InputError
from pocketlm.runtimes.build import export
from pocketlm.runtimes.certificate import certificate_from_json
from pocketlm.runtimes.cli import run
from pocketlm.runtimes.make_report import make_report
from pocketlm.runtimes.model_card import _text
from pocketlm.runtimes.report_measured import cache_bytes
from pocketlm.runtimes.report_read import read_report_data

GOOD = Path(__file__).parent / "golden" / "bundle" / "good"
PHONE = Path(__file__).parent / "golden" / "device_results.json"
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> </style></title> {{ 7*7 }} {% raw %} "
    "[link](https://evil.example) ![i](//evil) `code` | pipe --- ${x}$ \u202egnp.exe \ud800 \x00 \x1b[31m "
    "https://evil.example www.evil.example &lt;b&gt; <!-- --> ]]> \u2028 \ufffe"
)


class Page(HTMLParser):
    """The elements of a page, and its text; an element that is not closed in its place is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def tags(self, name):
        return [attributes for tag, attributes, _ in self.elements if tag == name]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export(str(tiny_folder), folder, recipe="int4-rtn", context=64)
    return folder


@pytest.fixture
def bundle(tmp_path):
    return Path(shutil.copytree(GOOD, tmp_path / "bundle"))


def change(bundle, **keys):
    path = bundle / "pocketlm.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | keys))
    return content


def page_of(bundle, tmp_path, **options):
    make_report(bundle, tmp_path / "page.html", overwrite=True, **options)
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_page_of_an_export_says_what_its_manifest_says(exported, tmp_path, capsys):
    page, card = tmp_path / "page.html", tmp_path / "README.md"
    assert run(["report", str(exported), "-o", str(page), "--card", str(card), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["report"], written["card"], written["verdict"]) == (str(page), str(card), "good")
    manifest = json.loads((exported / "pocketlm.json").read_text())
    assert written["manifest_sha256"] == hashlib.sha256((exported / "pocketlm.json").read_bytes()).hexdigest()
    text = Page(page.read_text()).text
    target = manifest["certificate"]["targets"]["onnx"]
    figures = [f"{target[error]['kl']:.2g}" for error in ("quantization", "conversion", "runtime", "total")]
    figures += [entry["sha256"] for entry in (*manifest["source"].values(), *manifest["files"].values())]
    figures += [written["manifest_sha256"], "int4-rtn", target["evaluated_by"], "64 tokens here"]
    figures += [f"{100 * manifest['quantization']['model.layers.1.self_attn.o_proj.weight']:.2f}"]
    size = sum(file.stat().st_size for file in (exported / "onnx").rglob("*"))
    figures += [f"{size / 1e3:.1f}\N{NO-BREAK SPACE}kB" if size < 1e5 else f"{size / 1e6:.1f}\N{NO-BREAK SPACE}MB"]
    shown = page.read_text()
    assert [figure for figure in figures if figure not in shown] == []
    assert "No phone's replay of this bundle was given" in text
    assert "pocketlm export tiny -o bundle --to onnx --recipe int4-rtn --context 64" in text


def test_parameters_are_those_of_the_checkpoint(exported, tiny_folder):
    from pocketlm.runtimes.report_facts import parameters
    from safetensors import safe_open

    with safe_open(tiny_folder / "model.safetensors", "np") as file:
        wanted = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert parameters(read_report_data(exported, (), (), ()).manifest) == wanted


def test_caches_are_as_large_as_the_graph_declares(exported):
    import onnx

    graph = onnx.load(exported / "onnx" / "model.onnx", load_external_data=False).graph
    caches = [value.type.tensor_type for value in graph.input if value.name.startswith("past_key_values")]
    assert {cache.elem_type for cache in caches} == {onnx.TensorProto.FLOAT}
    values = sum(cache.shape.dim[1].dim_value * cache.shape.dim[3].dim_value for cache in caches)
    assert cache_bytes(read_report_data(exported, (), (), ()), "onnx") == 4 * 64 * values > 0


def test_page_is_well_formed_and_loads_nothing(exported, tmp_path):
    page = page_of(exported, tmp_path)
    names = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert not {"script", "link", "iframe", "object", "embed", "form", "img"} & {tag for tag, _, _ in page.elements}
    for _, attributes, _ in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "action", "srcset")]
        assert attributes.get("href", "#")[0] == "#"
    assert {a["href"][1:] for a in page.tags("a")} <= set(names)
    for svg in (attributes for attributes in page.tags("svg") if attributes.get("aria-hidden") != "true"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(names)
    assert sum(tag == "desc" for tag, _, _ in page.elements) == 3
    assert len(page.tags("table")) == len(page.tags("caption")) > 5
    assert len(page.tags("h1")) == 1
    source = (tmp_path / "page.html").read_text()
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL).group(1)
    policy = next(meta["content"] for meta in page.tags("meta") if meta.get("http-equiv"))
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"url\(|@import|https?:", style)


def test_same_inputs_give_same_bytes_without_a_path(exported, tmp_path):
    moved = Path(shutil.copytree(exported, tmp_path / "elsewhere" / "carried-off"))
    files = []
    for index, place in enumerate((exported, moved)):
        folder = tmp_path / f"out{index}"
        folder.mkdir()
        make_report(place, folder / "a.html", card=folder / "b.md")
        files.append(((folder / "a.html").read_bytes(), (folder / "b.md").read_bytes()))
    assert files[0] == files[1]
    for content in files[0]:
        assert str(tmp_path.parent).encode() not in content
        assert b"carried-off" not in content


def hostile_bundle(bundle):
    content = change(bundle)
    target = content["certificate"]["targets"]["onnx"]
    target |= {"evaluated_by": HOSTILE, "notes": [HOSTILE], "lint": [HOSTILE], "failures": [HOSTILE], "passed": False}
    certificate = {"passed": False, "targets": {"onnx": target, HOSTILE: target}}
    recipe = {
        "name": HOSTILE, "linear": {"kind": HOSTILE, "group": 32}, "embedding": {"kind": "int8", "group": None},
        "overrides": {HOSTILE: {"kind": "int4", "group": 32}}, "thresholds": {HOSTILE: 1.0}, "method": HOSTILE,
    }  # fmt: skip
    change(
        bundle, name=HOSTILE, licence=HOSTILE, notes=[HOSTILE], pocketlm=HOSTILE, certificate=certificate,
        recipe=recipe,
        source={HOSTILE.replace("\\", ""): {"size_bytes": 5, "sha256": HOSTILE}},
        weights={"model.norm.weight": {"format": HOSTILE}},
        quantization={f"model.layers.{layer}.mlp.{HOSTILE}": 0.5 for layer in range(2)},
    )  # fmt: skip
    return bundle


def hostile_measurements(tmp_path):
    """Files of every kind that a report takes, with hostile text wherever they have text."""
    quality = {"perplexity": {"mean": 3.0, "low": 2.0, "high": 4.0}, "kl": None, "top1": None, "perplexity_ratio": None}
    layers = {"model.layers.0.input_layernorm.output": 0.5, f"model.layers.1.{HOSTILE}": 0.5}
    candidate = {"quality": quality, "size_bytes": 5, "layer_errors": layers}
    phone = json.loads(PHONE.read_text())
    phone["device"] |= {"model": HOSTILE, "system": HOSTILE}
    phone |= {"error": HOSTILE, "verify": {HOSTILE: phone["verify"]["onnx"]}}
    phone["bench"]["targets"] = {HOSTILE: phone["bench"]["targets"]["onnx"]}
    target = phone["bench"]["targets"][HOSTILE] | {"evaluated_by": HOSTILE}
    content = {
        "eval.json": {"tokens": 5, "sequences": 1, "source": None, "candidates": {HOSTILE: candidate}},
        "peers.json": peers(HOSTILE),
        "plan.json": plan(HOSTILE),
        "phone.json": phone,
        "bench.json": {"prompt_tokens": 1, "new_tokens": 1, "threads": 1, "targets": {HOSTILE: target}},
    }
    for name, each in content.items():
        (tmp_path / name).write_text(json.dumps(each))
    return {
        "evaluations": [tmp_path / "eval.json", tmp_path / "peers.json"],
        "benches": [tmp_path / "phone.json", tmp_path / "bench.json"],
        "plans": [tmp_path / "plan.json"],
    }


def peers(name):
    """As `eval --tasks --json` writes it."""
    share = {"count": 40, "right": 30, "accuracy": {"mean": 0.75, "low": 0.6, "high": 0.86}, "not_understood": 0}
    cost = {
        "answers": 40, "seconds_per_answer": 0.5, "tokens_per_second": 100.0, "prompt_tokens": 9, "new_tokens": 9,
        "peak_memory_bytes": None, "joules_per_answer": None, "price_of_1000_answers": None,
    }  # fmt: skip
    side = {
        "name": name, "choices": share, "choices_by_length": None, "answers": None, "bits_per_byte": None,
        "cost": cost, "refused": 0,
    }  # fmt: skip
    paired = {"choices": {"both": 20, "only_first": 10, "only_second": 4, "neither": 6, "p_value": 0.18}}
    about = {"source": name}
    return {
        "task": {"name": name, "about": about, "items": 40}, "method": {}, "sides": [side, side | {"name": "peer"}],
        "paired": paired, "notes": [name], "answers": [],
    }  # fmt: skip


def plan(name):
    """As `plan --json` writes it, as far as it is read."""
    estimate = {"low": 0.25, "typical": 0.5, "high": 12.0}
    device = {
        "device": "phone", "name": name, "target": "onnx", "limit_bytes": 2_000_000_000, "needed_bytes": 500_000_000,
        "verdict": name, "reason": name, "remedies": [], "first_token_seconds": estimate,
        "tokens_per_second": estimate, "joules_per_token": estimate,
    }  # fmt: skip
    devices = [device, device | {"name": "without its artifact", "target": "coreml"}]
    return {"model": name, "recipe": "int4", "context": 128, "parameters": 5, "targets": {}, "devices": devices}


def test_hostile_text_stays_text_on_the_page(bundle, tmp_path):
    page = page_of(hostile_bundle(bundle), tmp_path, **hostile_measurements(tmp_path))
    tags = {tag for tag, _, _ in page.elements}
    assert not {"script", "img", "b"} & tags
    assert all(not key.startswith("on") for _, attributes, _ in page.elements for key in attributes)
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }} {% raw %}" in page.text
    assert "49" not in next(text for text in page.words if "alert(1)" in text)
    assert not set("\u202e\x00\x1b\u2028\ufffe") & set(page.text)
    assert page.tags("section")[0]["class"] == "verdict bad"


def test_hostile_text_stays_text_in_the_card(bundle, tmp_path):
    make_report(hostile_bundle(bundle), tmp_path / "p.html", card=tmp_path / "c.md", **hostile_measurements(tmp_path))
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.license == "other"
    assert re.fullmatch(r"[a-z0-9.-]{1,100}", card.data.license_name)
    assert set(card.data.tags) == {"onnx", "conversational", "on-device", "quantized"}
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    flat = [token for each in tokens for token in (each, *(each.children or []))]
    kinds = {token.type for token in flat}
    assert not {"html_block", "html_inline", "link_open", "image", "s_open", "hr", "fence_open"} & kinds
    assert {token.content for token in flat if token.type == "code_inline"} == {"onnx/"}
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in flat) == 1
    assert any("<script>alert(1)</script>" in token.content for token in flat if token.type == "text")
    rows = re.findall(r"(?<!\\)\|", next(line for line in card.text.splitlines() if line.startswith("| Name")))
    assert len(rows) == 3
    assert not re.search(r"(?<!\\)(https?://|www\.)", card.text.split("## Reproduce")[0])


@pytest.mark.parametrize(
    "text",
    [
        "# a", "- a", "+ a", "* a", "1. a", "12) a", "---", "===", "***", "> a", "    a", "```", "~~~", "a  ", "|",
        "a | b", "\\", "\\|", "<b>", "&amp;", "[a]: b", "[a](b)", "![a](b)", "_a_ **b**", "<https://a.example>", "1.5",
        "-5.0 %", "#1",
    ],
)  # fmt: skip
def test_any_text_is_one_paragraph_of_itself(text):
    read = MarkdownIt("commonmark").enable("table").parse
    shown = "".join(child.content for token in read(f"- {_text(text)}") for child in token.children or [])
    assert shown == text.strip()
    kinds = [token.type for token in read(f"- {_text(text)}")]
    assert kinds == [
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close", "list_item_close",
        "bullet_list_close",
    ]  # fmt: skip
    cells = [token.content for token in read(f"| {_text(text)} | b |\n|---|---|\n") if token.type == "inline"]
    assert len(cells) == 2


def test_hub_reads_the_card(exported, tmp_path):
    card = tmp_path / "README.md"
    make_report(exported, tmp_path / "p.html", card=card, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    metadata = metadata_load(card)
    validate_repo_id(metadata["base_model"])
    assert metadata == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "base_model_relation": "quantized",
        "library_name": "pocketlm", "license": "unknown", "pipeline_tag": "text-generation",
        "tags": ["onnx", "conversational", "on-device", "quantized", "int4-rtn"],
    }  # fmt: skip
    assert ModelCard.load(card).data.to_dict() == metadata
    text = card.read_text()
    assert yaml.safe_load(text.split("---")[1]) == metadata
    tables = MarkdownIt("commonmark").enable("table").render(ModelCard(text).text)
    assert tables.count("<table>") >= 5
    assert "pocketlm chat" in tables


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("llama3.2", {"license": "llama3.2"}),
        ("My Own Licence 1.0", {"license": "other", "license_name": "my-own-licence-1.0"}),
        (None, {"license": "unknown"}),
    ],
)
def test_licences_are_the_hubs(bundle, tmp_path, licence, found):
    change(bundle, licence=licence)
    make_report(bundle, tmp_path / "p.html", card=tmp_path / "c.md")
    metadata = metadata_load(tmp_path / "c.md")
    assert {key: value for key, value in metadata.items() if key.startswith("license")} == found
    assert "base_model" not in metadata


def failed(content):
    target = content["certificate"]["targets"]["onnx"]
    failures = ["runtime: KL 0.5 exceeds 0.01"]
    runtime = target["runtime"] | {"kl": 0.5}
    return {"passed": False, "targets": {"onnx": target | {"failures": failures, "passed": False, "runtime": runtime}}}


def test_what_was_not_verified_is_said(bundle, tmp_path):
    content = change(bundle)
    assert page_of(bundle, tmp_path).tags("section")[0]["class"] == "verdict good"
    change(bundle, certificate={})
    page = page_of(bundle, tmp_path)
    assert page.tags("section")[0]["class"] == "verdict bad"
    assert "Not verified: there is no certificate" in page.text
    assert "nobody has shown that its files compute" in page.text
    change(bundle, certificate=failed(content))
    page = page_of(bundle, tmp_path)
    assert "Verification failed onnx: runtime: KL 0.5 exceeds 0.01" in page.text
    assert "dot bad" in [circle["class"] for circle in page.tags("circle")]
    target = content["certificate"]["targets"]["onnx"] | {"weights_identical": False}
    change(bundle, certificate={"passed": True, "targets": {"onnx": target}})
    assert "Verification failed onnx: its weights are not the canonical ones" in page_of(bundle, tmp_path).text
    (bundle / "executorch").mkdir()
    (bundle / "executorch" / "model.pte").write_bytes(b"x")
    entry = {"size_bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    change(bundle, certificate=content["certificate"], files=content["files"] | {"executorch/model.pte": entry})
    page = page_of(bundle, tmp_path)
    assert page.tags("section")[0]["class"] == "verdict partly"
    assert "executorch: has no certificate; nothing is known of what it computes" in page.text
    assert "executorch: was not verified at all." in page.text
    (bundle / "executorch" / "model.pte").write_bytes(b"y")
    page = page_of(bundle, tmp_path)
    assert page.tags("section")[0]["class"] == "verdict bad"
    assert "missing, or changed since the export: executorch/model.pte" in page.text


def test_errors_that_were_not_measured_are_no_numbers(bundle, tmp_path):
    content = change(bundle)
    target = content["certificate"]["targets"]["onnx"]
    for error in ("quantization", "total", "conversion"):
        del target[error]
    change(bundle, certificate={"passed": True, "targets": {"onnx": target}})
    text = page_of(bundle, tmp_path).text
    assert "Only a part was verified onnx: conversion, quantization, total not measured" in text
    assert text.count("not measured") >= 6


def test_measurements_are_shown_as_they_were_given(bundle, tmp_path):
    quality = {
        "perplexity": {"mean": 20.5, "low": 19.5, "high": 21.5}, "kl": {"mean": 0.08, "low": 0.07, "high": 0.09},
        "top1": {"mean": 0.84, "low": 0.82, "high": 0.86}, "perplexity_ratio": {"mean": 1.1, "low": 1.05, "high": 1.15},
    }  # fmt: skip
    layers = {"model.layers.0.input_layernorm.output": 0.0, "model.layers.1.input_layernorm.output": 0.125}
    candidates = {"mine": {"quality": quality, "size_bytes": 99_000_000, "layer_errors": layers}}
    source = {"perplexity": {"mean": 18.6, "low": float("-inf"), "high": float("inf")}}
    evaluation = {"tokens": 1024, "sequences": 4, "source": source, "candidates": candidates}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    (tmp_path / "peers.json").write_text(json.dumps(peers("a task")))
    phone = json.loads(PHONE.read_text())
    target = phone["bench"]["targets"]["onnx"] | {
        "evaluated_by": "onnxruntime",
        "lengths": {"20": {"decode_tokens_per_second": 8.0}, "512": {"decode_tokens_per_second": 6.4}},
    }
    (tmp_path / "bench.json").write_text(
        json.dumps({"prompt_tokens": 20, "new_tokens": 10, "threads": 4, "targets": {"onnx": target}})
    )
    phone["bundle"]["manifest_sha256"] = hashlib.sha256((bundle / "pocketlm.json").read_bytes()).hexdigest()
    (tmp_path / "phone.json").write_text(json.dumps(phone))
    page = page_of(
        bundle, tmp_path,
        evaluations=[tmp_path / "eval.json", tmp_path / "peers.json"],
        benches=[tmp_path / "bench.json", tmp_path / "phone.json", PHONE],
    )  # fmt: skip
    for words in (
        "20.50 ± 1.00", "+10.0 ± 5.0 %", "0.0800 ± 0.0100", "84.0 ± 2.0 %", "18.60", "1,024 tokens in 4 pieces",
        "30 of 40: 75.0 % (60.0 to 86.0)", "only a task 10, only peer 4", "p = 0.18", "On Phone 1, Android 14",
        "Of this very bundle, by the hash of its manifest", "OF ANOTHER BUNDLE", "onnx: by onnxruntime",
        "executorch: the replay on Phone 1 failed", "layer 1: 12.50 %", "a task, 40 questions, from peers.json",
        "decode behind 512 tokens, tokens/s6",
    ):  # fmt: skip
        assert words in page.text, words
    assert "18.60 ±" not in page.text
    assert "parity on a phone is not shown" not in page.text
    assert page.text.count("decode, tokens/s8") == 3


def test_a_plan_is_shown_as_an_estimate_and_held_against_the_bundle(bundle, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(plan("Some Phone")))
    text = page_of(bundle, tmp_path, plans=[tmp_path / "plan.json"]).text
    assert "Some Phoneonnx500 of 2,0000.25–120.25–120.25–12Some Phone" in text
    assert "without its artifact" not in text
    assert "For Some Phone by int4 with a context of 128 tokens, from plan.json." in text
    assert "THAT IS NOT" in text  # this bundle's recipe cannot be read
    recipe = {
        "name": "int4", "linear": {"kind": "int4", "group": 32}, "embedding": {"kind": "int8", "group": None},
        "overrides": {}, "thresholds": {}, "method": "rtn",
    }  # fmt: skip
    change(bundle, recipe=recipe)
    assert "THAT IS NOT" not in page_of(bundle, tmp_path, plans=[tmp_path / "plan.json"]).text
    change(bundle, recipe=recipe, context=64)
    assert "THAT IS NOT" in page_of(bundle, tmp_path, plans=[tmp_path / "plan.json"]).text


def test_a_tuned_recipe_is_written_out_and_names_are_quoted(bundle, tmp_path):
    recipe = {
        "name": "mine", "linear": {"kind": "int4", "group": 64}, "embedding": {"kind": "int8", "group": None},
        "overrides": {"model.layers.0.*": {"kind": "int8", "group": None}}, "thresholds": {}, "method": "rtn",
    }  # fmt: skip
    change(bundle, recipe=recipe, name="my model; rm -rf /")
    text = page_of(bundle, tmp_path).text
    assert "pocketlm export 'my model; rm -rf /' -o bundle --to onnx --recipe recipe.toml --context 128" in text
    assert '"model.layers.0.*" = { kind = "int8" }' in text


def test_a_mixture_says_how_many_experts_work(bundle, tmp_path):
    config = change(bundle)["config"]
    change(bundle, config=config | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2})
    assert "; 2 of 8 experts for each token" in page_of(bundle, tmp_path).text


def test_experts_share_a_cell_that_shows_the_worst(bundle, tmp_path):
    errors = {
        f"model.layers.0.mlp.experts.{expert}.gate_proj.weight": error for expert, error in enumerate((0.1, 0.3, 0.2))
    }
    change(bundle, quantization=errors)
    page = page_of(bundle, tmp_path)
    assert next(rect for rect in page.tags("rect") if rect.get("class") == "cell")["fill-opacity"] == "1.00"
    assert "layer 0, gate: 30.00 %" in page.text


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--evaluation", "{", "cannot be read as JSON"),
        ("--evaluation", "[]", "damaged"),
        ("--evaluation", '{"tokens": 5}', "give what `pocketlm eval --json` printed"),
        (
            "--evaluation",
            '{"tokens": 5, "sequences": 1, "source": null, "candidates": {"a": {"size_bytes": NaN}}}',
            "NaN",
        ),
        ("--evaluation", '{"sides": []}', "damaged"),
        ("--bench", "{}", "measure again"),
        ("--plan", "{}", "give what `pocketlm plan --json` printed"),
        ("--bench", '{"kind": "device"}', "damaged"),
        ("--bench", '{"prompt_tokens": true, "new_tokens": 1, "threads": 1, "targets": {}}', "prompt_tokens is True"),
    ],
)
def test_files_that_are_something_else_are_named(bundle, tmp_path, capsys, option, content, message):
    (tmp_path / "given.json").write_text(content)
    before = sorted(tmp_path.iterdir())
    assert run(["report", str(bundle), "-o", str(tmp_path / "p.html"), option, str(tmp_path / "given.json")]) == 2
    error = capsys.readouterr().err
    assert message.lower() in error.lower()
    assert error.count("\n") == 1
    assert "given.json" in error
    assert sorted(tmp_path.iterdir()) == before


def places(content, path=()):
    """The path of each value in a JSON document."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def with_odd_value(content, path, value):
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = with_odd_value(content[path[0]], path[1:], value)
    return content


ODD = (None, "x", [], {}, float("nan"), -1, 1e308, True, 0, [1], {"a": 1}, 10**400, "\ud800")


@pytest.mark.parametrize("kind", ["manifest", "plans", "evaluations", "benches"])
def test_any_damage_is_shown_or_refused_but_never_a_bug(bundle, tmp_path, kind):
    manifest = json.loads((bundle / "pocketlm.json").read_text())
    manifest["recipe"] = {
        "name": "int4", "linear": {"kind": "int4", "group": 32}, "embedding": {"kind": "int8", "group": None},
        "overrides": {"a": {"kind": "int8", "group": None}}, "thresholds": {"total.kl": 1.0}, "method": "rtn",
    }  # fmt: skip
    sound = {
        "manifest": manifest, "plans": plan("a"), "evaluations": peers("a"), "benches": json.loads(PHONE.read_text()),
    }[kind]  # fmt: skip
    draw, paths, outcomes = random.Random(0), list(places(sound)), set()
    for _ in range(25):
        damaged = json.dumps(with_odd_value(sound, draw.choice(paths), draw.choice(ODD)))
        file = bundle / "pocketlm.json" if kind == "manifest" else tmp_path / "given.json"
        file.write_text(damaged)
        options = {} if kind == "manifest" else {kind: [file]}
        try:
            make_report(bundle, tmp_path / "p.html", card=tmp_path / "c.md", overwrite=True, **options)
            outcomes.add("shown")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"shown", "refused"}


@pytest.mark.parametrize("damage", ["kl", "error", "lengths", "rate", "bench"])
def test_a_phones_figures_must_be_figures(bundle, tmp_path, damage):
    phone = json.loads(PHONE.read_text())
    target = phone["bench"]["targets"]["onnx"]
    if damage == "kl":
        phone["verify"]["executorch"]["kl"] = "small"
    elif damage == "error":
        phone["error"] = [1]
    elif damage == "bench":
        phone["bench"] = 5
    else:
        target |= {"lengths": 5} if damage == "lengths" else {"decode_tokens_per_second": "8"}
    (tmp_path / "phone.json").write_text(json.dumps(phone))
    with pytest.raises(InputError, match="damaged"):
        make_report(bundle, tmp_path / "p.html", benches=[tmp_path / "phone.json"])


@pytest.mark.parametrize(
    "damage",
    [
        {"name": 5}, {"licence": []}, {"notes": [1]}, {"quantization": {"a": "b"}}, {"weights": {"a": {}}},
        {"certificate": {"targets": []}}, {"certificate": {"targets": {"onnx": {"passed": True}}}},
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(bundle, tmp_path, damage):
    change(bundle, **damage)
    with pytest.raises(InputError, match="damaged"):
        make_report(bundle, tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_a_certificate_cannot_contradict_itself(bundle):
    content = change(bundle)["certificate"]
    assert certificate_from_json(content).to_json() == content
    content["targets"]["onnx"]["failures"] = ["runtime: KL 1 exceeds 0.1"]
    with pytest.raises(ValueError, match="contradicts"):
        certificate_from_json(content)


def test_outputs_are_whole_or_not_there(bundle, tmp_path, capsys):
    page, card = tmp_path / "p.html", tmp_path / "c.md"
    arguments = ["report", str(bundle), "-o", str(page), "--card", str(card)]
    card.write_text("mine")
    assert run(arguments) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    assert not page.exists()
    assert card.read_text() == "mine"
    assert run([*arguments, "--overwrite"]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert card.read_text().startswith("---\n")
    refused = {
        "is what the report is made of": ["-o", str(bundle / "pocketlm.json"), "--overwrite"],
        "cannot be one file": ["-o", str(page), "--card", str(tmp_path / "." / "p.html"), "--overwrite"],
        "there is no folder": ["-o", str(tmp_path / "absent" / "p.html")],
        "is not a file": ["-o", str(bundle / "onnx")],
        "is not a Hub id": ["-o", str(tmp_path / "q.html"), "--card", str(tmp_path / "d.md"), "--base-model", "x"],
    }
    for message, options in refused.items():
        capsys.readouterr()
        assert run(["report", str(bundle), *options]) == 2
        assert message in capsys.readouterr().err
    assert run(["report", str(tmp_path / "nothing"), "-o", str(tmp_path / "q.html")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "c.md", "p.html"]


def test_hostile_text_does_not_reach_the_terminal(bundle, tmp_path, capsys):
    hostile_bundle(bundle)
    for options in ([], ["--json", "--overwrite"]):
        assert run(["report", str(bundle), "-o", str(tmp_path / "p.html"), *options]) == 0
        shown = capsys.readouterr().out
        assert "<script>" in shown
        assert not set("\x1b\x00\u202e\ud800") & set(shown)


def test_report_says_in_words_what_it_wrote(bundle, tmp_path, capsys):
    change(bundle, certificate={})
    assert run(["report", str(bundle), "-o", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Not verified: there is no certificate",
        "  onnx: has no certificate; nothing is known of what it computes",
        f"Wrote {tmp_path / 'p.html'}",
    ]
