"""LoRA adapters merged at export, against PEFT's own merge."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pocketlm.errors import InputError
from pocketlm.export.adapters import parse_adapter
from pocketlm.export.bundle import read_manifest
from pocketlm.export.open_checkpoint import open_checkpoint
from tiny import tiny_llama
from tiny_families import family_folder

peft = pytest.importorskip("peft")


def write_adapter(base, folder, targets, seed, **options):
    """A random adapter for a model, as PEFT saves it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **options)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base, adapters):
    """Weights by name after PEFT merged adapters, each with its weight, one after the other."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for folder, weight in adapters:
        adapted = peft.PeftModel.from_pretrained(model, folder)
        for module in adapted.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scale_layer(weight)
        model = adapted.merge_and_unload()
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("base") / "m", attention_bias=True)


def test_two_adapters_with_weights_equal_pefts_merge(llama, tmp_path):
    options = {"r": 4, "lora_alpha": 6, "alpha_pattern": {"q_proj": 12}, "rank_pattern": {"down_proj": 2}}
    first = write_adapter(llama, tmp_path / "a", ["q_proj", "v_proj", "down_proj"], 1, **options)
    second = write_adapter(llama, tmp_path / "b", ["q_proj", "gate_proj"], 2, r=8, lora_alpha=16, use_rslora=True)
    expected = merged_by_peft(llama, [(first, 0.5), (second, 1.0)])
    merged, plain = open_checkpoint(str(llama), [f"{first}=0.5", str(second)]), open_checkpoint(str(llama))
    changed = set()
    for name in plain.names():
        values = merged.read(name)
        assert np.abs(values - expected[name]).max() <= 1e-6, name
        if not np.array_equal(values, plain.read(name)):
            changed.add(name.split(".")[-2])
    assert changed == {"q_proj", "v_proj", "down_proj", "gate_proj"}
    assert [path.parent.name for path in merged.files] == ["m", "a", "b"]


@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [("gpt2", ["c_attn", "c_proj"], {"fan_in_fan_out": True}), ("phi4", ["qkv_proj", "gate_up_proj"], {})],
)
def test_fused_and_transposed_matrices(name, targets, options, tmp_path):
    base = family_folder(name)
    adapter = write_adapter(base, tmp_path / "a", targets, 3, r=4, lora_alpha=8, **options)
    folder = shutil.copytree(base, tmp_path / "merged")
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    expected, merged = open_checkpoint(str(folder)), open_checkpoint(str(base), [str(adapter)])
    plain = open_checkpoint(str(base))
    assert set(expected.names()) == set(merged.names())
    for tensor in expected.names():
        assert np.abs(expected.read(tensor) - merged.read(tensor)).max() <= 1e-6, tensor
    query = "model.layers.0.self_attn.q_proj.weight"
    assert np.abs(plain.read(query) - merged.read(query)).max() > 1e-2


def test_an_export_with_an_adapter_names_it(llama, tmp_path):
    from pocketlm import export, verify

    adapter = write_adapter(llama, tmp_path / "style", ["q_proj"], 4, r=4)
    report = export(str(llama), tmp_path / "b", recipe="int8-rtn", context=64, adapters=[f"{adapter}=0.5"])
    assert report.certificate.targets["onnx"].passed
    manifest = read_manifest(tmp_path / "b")
    assert set(manifest.source) == {"model.safetensors", "style/adapter_model.safetensors"}
    assert manifest.notes[-1] == "LoRA adapter style was merged with weight 0.5"
    again = verify(tmp_path / "b", model=str(llama), adapters=[f"{adapter}=0.5"]).targets["onnx"]
    assert again.quantization.kl == pytest.approx(report.certificate.targets["onnx"].quantization.kl, rel=1e-3)
    without = verify(tmp_path / "b", model=str(llama)).targets["onnx"]
    assert without.quantization.kl > 10 * again.quantization.kl


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported; merge the adapter with PEFT first"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
        ({"lora_alpha": "many"}, "lora_alpha must be a number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern '\(' is not a regular expression"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication = "),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora' is not supported; merge the adapter with PEFT"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    ],
)
def test_other_kinds_of_adapters_are_refused(llama, tmp_path, change, message):
    adapter = write_adapter(llama, tmp_path / "a", ["q_proj"], 5, r=4)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(llama), [str(adapter)])


@pytest.mark.parametrize("shape", [(), (4,), (128, 3)])
def test_matrices_that_do_not_fit_each_other_are_refused(llama, tmp_path, shape):
    from safetensors.numpy import load_file, save_file

    adapter = write_adapter(llama, tmp_path / "a", ["q_proj"], 7, r=4)
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: np.ones(shape, np.float32)}, path)
    with pytest.raises(InputError, match="lacks one of its two matrices, or they do not fit each other"):
        open_checkpoint(str(llama), [str(adapter)])


def test_an_adapter_for_another_model_is_refused(llama, tmp_path):
    other = tiny_llama(tmp_path / "other", hidden=32, layers=1)
    adapter = write_adapter(other, tmp_path / "a", ["q_proj"], 6, r=4)
    with pytest.raises(InputError, match=r"q_proj.weight has the shape \[128, 32\], the model's is \[128, 64\]"):
        open_checkpoint(str(llama), [str(adapter)])
    with pytest.raises(InputError, match="which the model does not have"):
        open_checkpoint(str(llama), [str(_for_layer_9(adapter))])
    with pytest.raises(InputError, match="is not an adapter; it needs adapter_config"):
        open_checkpoint(str(llama), [str(tmp_path)])


def _for_layer_9(adapter):
    from safetensors.numpy import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.0", "layers.9"): value for name, value in load_file(path).items()}, path)
    return adapter


def test_weights_of_adapters_on_the_command_line(tmp_path):
    assert parse_adapter("dir") == (Path("dir"), 1.0)
    assert parse_adapter("dir=0.25")[1] == 0.25
    (tmp_path / "a=b").mkdir()
    assert parse_adapter(str(tmp_path / "a=b")) == (tmp_path / "a=b", 1.0)
    with pytest.raises(InputError, match="the weight must be a number, as in dir="):
        parse_adapter("dir=heavy")
