"""A merged model equals the adapted model, and plain transformers loads it."""

import json
from pathlib import Path

import pytest
import torch
from pickled import Harm
from safetensors.torch import load_file, save_file
from tiny_internlm import make_internlm2
from tiny_vlm import read
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.checkpoints.shards import lazy_weights
from llm.export.merge import merge
from llm.internlm.loading import load_internlm
from llm.loading import load_model, load_template
from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.modules.lora import ADAPTER_CONFIG, attach_adapter, load_adapter, read_adapter_config, save_adapter
from tuning.settings import Lora, Quant
from vlm.export.llava import example_picture
from vlm.export.merge_tower import merge_tower
from vlm.finetuned import load_trained_weights
from vlm.loading import make_initial_parts
from vlm.towers.registry import load_tower


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A random adapter with a large effect: its B matrices are not zero."""
    loaded = load_model(str(tiny_model), load_template(str(tiny_model), None), Quant(bits=16, compute="fp32"), "cpu")
    model = attach_adapter(loaded.model, Lora(rank=4, alpha=8), 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    save_adapter(model, tmp_path / "adapter", str(tiny_model))
    return tmp_path / "adapter"


def test_merged_logits_equal_adapted_logits_and_rounding_is_reported(tiny_model, adapter, tmp_path):
    report = merge(str(tiny_model), adapter, tmp_path / "merged", trained_on=Quant(bits=4))
    assert report.merged.difference <= 1e-3 and report.merged.same_token == 1.0
    assert 0 < report.rounded.difference < 0.2
    assert report.quantized is not None and report.quantized.difference > 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    template = load_template(str(tiny_model), None)
    assert tokenizer.chat_template == template.tokenizer.chat_template
    base = load_model(str(tiny_model), template, Quant(bits=16, compute="fp32"), "cpu")
    ids = torch.tensor([tokenizer("who are you? 你是谁", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        plain = base.model(ids).logits
        adapted = load_adapter(base.model, adapter)(input_ids=ids).logits
        given = merged.float()(ids).logits
    assert (given - adapted).abs().max() < 0.25 * (given - plain).abs().max()


def test_merged_internlm2_model_gives_equal_logits_in_both_layouts(tiny_model, adapter, tmp_path):
    base = make_internlm2(tiny_model, tmp_path / "base")
    (base / "modeling_internlm2.py").write_text("raise SystemExit")
    for layout in ("hf", "internlm2"):
        merge(str(base), adapter, tmp_path / layout, "100KB", layout=layout)
    stored, was = lazy_weights(tmp_path / "internlm2"), lazy_weights(base)
    assert {name: weight.shape for name, weight in stored.items()} == {
        name: weight.shape for name, weight in was.items()
    }
    written = {path.name for path in (tmp_path / "internlm2").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= written
    assert not any(name.endswith(".py") for name in written)
    assert (tmp_path / "internlm2" / "config.json").read_text() == (base / "config.json").read_text()
    ids = torch.arange(30)[None]
    theirs = load_internlm(tmp_path / "internlm2", dtype=torch.float32)(ids).logits
    assert torch.equal(theirs, AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)(ids).logits)
    with pytest.raises(ModelError, match="has the model type llama; omit --layout"):
        merge(str(tiny_model), adapter, tmp_path / "other", layout="internlm2")


def test_merged_config_has_the_keys_of_transformers_4(tiny_model, adapter, tmp_path):
    merge(str(tiny_model), adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (config["rope_parameters"]["rope_theta"], "bfloat16")
    tokens = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_malicious_pickled_adapter_is_refused_and_not_executed(tiny_model, adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Harm(tmp_path / "ran")}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="nothing of it was run"):
        merge(str(tiny_model), adapter, tmp_path / "merged")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_merged_tower_features_equal_adapted_tower_features(make_run, towers, tmp_path, kind):
    run = make_run(kind, tower_lora=True)
    difference = merge_tower(str(towers[kind]), run.adapter / "tower", tmp_path / "merged", "2GB")
    assert difference < 1e-5
    task, _ = read(run)
    vlm_parts = make_initial_parts(task, load_model(task.model, load_template(task.model, None), task.quant, "cpu"))
    load_trained_weights(vlm_parts, run.adapter)
    pixels = vlm_parts.tower.preprocess(example_picture())[None]
    merged, plain = (
        load_tower(str(name), torch.device("cpu"), torch.float32) for name in (tmp_path / "merged", towers[kind])
    )
    with torch.no_grad():
        assert torch.allclose(merged(pixels), vlm_parts.tower(pixels), atol=1e-4)
        assert not torch.allclose(merged(pixels), plain(pixels), atol=1e-2)
    weights = lazy_weights(tmp_path / "merged")  # transformers 4 initializes weights with other names at random
    assert all(name.startswith("vision_model.") for name in weights)
    with pytest.raises(ModelError, match="neither CLIP nor SigLIP"):
        merge_tower("embedded", run.adapter / "tower", tmp_path / "other", "2GB")
    with pytest.raises(ModelError, match="does not fit the model"):
        merge_tower(str(towers[kind]), run.adapter, tmp_path / "other", "2GB")


def test_merged_model_is_written_in_shards(tiny_model, adapter, tmp_path):
    merge(str(tiny_model), adapter, tmp_path / "merged", max_shard_size="100KB")
    shards = list((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_existing_or_unwritable_destination_is_refused(tiny_model, adapter, tmp_path):
    with pytest.raises(ConfigError, match="already exists"):
        merge(str(tiny_model), adapter, adapter)
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be written"):
        merge(str(tiny_model), adapter, tmp_path / "file" / "merged")


def test_quantized_base_is_refused(tiny_model, adapter, tmp_path):
    folder = tmp_path / "quantized"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ModelError, match="is stored quantized"):
        merge(str(folder), adapter, tmp_path / "merged")


def test_an_adapter_for_other_shapes_is_refused(tiny_model, adapter, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "other"
    template = load_template(str(tiny_model), None)
    config = LlamaConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size = 32, 64
    LlamaForCausalLM(config).save_pretrained(other)
    template.tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="does not fit the model"):
        merge(str(other), adapter, tmp_path / "merged")


@pytest.mark.parametrize("fault", ["missing", "too many"])
def test_adapter_with_missing_or_extra_weights_is_refused(tiny_model, adapter, tmp_path, fault):
    weights = load_file(adapter / "adapter_model.safetensors")
    first = min(weights)
    if fault == "missing":
        del weights[first]
    else:
        weights[first.replace("layers.0.", "layers.9.")] = weights[first].clone()
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"does not fit the model .*is {fault}"):
        merge(str(tiny_model), adapter, tmp_path / "merged")


def test_saved_adapter_reloads_byte_for_byte_with_sorted_target_modules(tiny_model, adapter, tmp_path):
    loaded = load_model(str(tiny_model), load_template(str(tiny_model), None), Quant(bits=16), "cpu")
    save_adapter(load_adapter(loaded.model, adapter), tmp_path / "again", str(tiny_model))
    for file in adapter.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    targets = read_adapter_config(adapter)["target_modules"]
    assert isinstance(targets, list) and targets == sorted(targets)
    (adapter / ADAPTER_CONFIG).write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_adapter_config(adapter)


@pytest.mark.parametrize("values", [{"r": "eight"}, {"r": None}, {"lora_alpha": 0}, {"rank_pattern": [1]}])
def test_adapter_with_invalid_settings_is_refused(adapter, values):
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | values))
    with pytest.raises(ModelError, match=f"{ADAPTER_CONFIG}: {next(iter(values))} must be"):
        read_adapter_config(adapter)


def test_truncated_adapter_is_refused_before_the_model_loads(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: cannot be read"):
        merge("no model", adapter, tmp_path / "merged")
