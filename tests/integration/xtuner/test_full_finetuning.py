"""Conversion of XTuner's full fine-tuning checkpoints to model folders and image runs."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from tiny_internlm import make_internlm2
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlamaForCausalLM

from llm.checkpoints.shards import lazy_weights
from llm.internlm.loading import load_internlm
from llm.settings import TextTask
from tuning.errors import KitError, ModelError
from tuning.run_dir import RunDir
from twinlens.chat_targets import open_target
from twinlens.task_files import read_task
from twinlens.tasks import to_yaml
from twinlens.xtuner.checkpoints import convert_checkpoint, read_checkpoint
from twinlens.xtuner.export import read_run, write_xtuner
from vlm.checkpoints.reading import read_initial_parts
from vlm.finetuned import load_finetuned
from vlm.projector import new_projector
from vlm.recipe import load_vlm_template
from vlm.settings import ImageTask
from vlm.towers.registry import load_tower
from vlm.towers.tower import TOWER_FOLDER

IDS = torch.arange(30)[None]
WHOLE = {"lora": None, "quant": {"bits": 16}, "data": {"files": ["none.jsonl"]}, "optim": {"steps": 1}}


def text_task(model: Path, **changes: object) -> TextTask:
    return TextTask.model_validate(WHOLE | {"model": str(model)} | changes)


def image_task(model: Path, tower: Path, **changes: object) -> ImageTask:
    return ImageTask.model_validate(WHOLE | {"model": str(model), "tower": str(tower)} | changes)


def trained(weights: Mapping[str, Tensor], prefix: str = "llm.") -> dict[str, Tensor]:
    """Changed weights under XTuner's names, in fp32."""
    draw = torch.Generator().manual_seed(1)
    return {
        prefix + name: value.float() + 0.05 * torch.randn(value.shape, generator=draw)
        for name, value in weights.items()
    }


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: weight.read() for name, weight in lazy_weights(folder).items()}


def as_pth(weights: Mapping[str, Tensor], file: Path) -> Path:
    torch.save({"state_dict": dict(weights), "meta": {"iter": 1}, "optimizer": {}}, file)
    return file


def convert(file: Path, task: TextTask | ImageTask, folder: Path, shard: str = "2GB") -> Path:
    convert_checkpoint(read_checkpoint(file, task), task, folder, shard)
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def test_a_full_model_becomes_a_model_folder(tiny_model, tmp_path):
    weights = trained(stored(tiny_model))
    file = as_pth(weights, tmp_path / "iter_1.pth")
    folder = convert(file, text_task(tiny_model), tmp_path / "model", shard="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    model, found = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()) and model.dtype == torch.bfloat16, "the 16-bit dtype of the base model"
    state = model.state_dict()
    assert all(torch.equal(state[name.removeprefix("llm.")], value.bfloat16()) for name, value in weights.items())
    opened = open_target(str(folder), None, 16)
    assert (
        opened.template.tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(tiny_model).chat_template
    )
    answering = json.loads((folder / "generation_config.json").read_text())
    assert answering["eos_token_id"] == list(opened.template.stop_ids)


def test_the_chat_template_of_training_is_saved(tiny_model, tmp_path):
    file = as_pth(trained(stored(tiny_model)), tmp_path / "iter_1.pth")
    folder = convert(file, text_task(tiny_model, template="vicuna"), tmp_path / "model")
    assert "USER:" in transformers.AutoTokenizer.from_pretrained(folder).chat_template


def test_fused_layers_of_internlm2_are_split_exactly(tiny_model, tmp_path):
    base = make_internlm2(tiny_model, tmp_path / "base")
    weights = trained(stored(base))
    assert any("wqkv" in name for name in weights)
    file = as_pth(weights, tmp_path / "iter_1.pth")
    folder = convert(file, text_task(base), tmp_path / "model")
    theirs = make_internlm2(tiny_model, tmp_path / "theirs")
    for part in theirs.glob("model*"):
        part.unlink()
    torch.save(
        {name.removeprefix("llm."): value.bfloat16() for name, value in weights.items()}, theirs / "pytorch_model.bin"
    )
    ours = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(ours), logits(load_internlm(theirs, dtype=torch.float32)))


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Gemma", "Mixtral", "Qwen2Moe", "Starcoder2", "Cohere"])
def test_every_model_family_is_converted(tmp_path, tokenizer, kind):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    extra = {"num_local_experts": 2} if kind == "Mixtral" else {}
    extra |= {"num_experts": 4, "moe_intermediate_size": 16} if kind == "Qwen2Moe" else {}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, **extra, **ids, num_key_value_heads=2, vocab_size=len(tokenizer), initializer_range=0.2
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    deepcopy(model).half().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for parameter in model.parameters():
        parameter.data = (parameter + 0.05 * torch.randn_like(parameter)).half().float()
    model.save_pretrained(tmp_path / "trained")
    weights = {f"llm.{name}": value for name, value in stored(tmp_path / "trained").items()}
    if config.tie_word_embeddings:  # a state dict has both names
        weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"]
    folder = convert(as_pth(weights, tmp_path / "iter_1.pth"), text_task(tmp_path / "base"), tmp_path / "model")
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {weight.dtype for weight in lazy_weights(folder).values()} == {torch.float16}
    assert torch.equal(logits(ours), logits(model.eval()))


def test_a_deepspeed_folder_is_read(tiny_model, tmp_path):
    weights = {name: value.bfloat16() for name, value in trained(stored(tiny_model)).items()}
    (tmp_path / "iter_1.pth").mkdir()
    file = tmp_path / "iter_1.pth" / "mp_rank_00_model_states.pt"
    torch.save({"module": weights, "ds_config": {}}, file)
    folder = convert(file.parent, text_task(tiny_model), tmp_path / "model")
    assert all(torch.equal(value, weights[f"llm.{name}"]) for name, value in stored(folder).items())
    torch.save({"module": {name: value.flatten()[:0] for name, value in weights.items()}}, file)
    with pytest.raises(ModelError, match="ZeRO-3 left its weights in parts"):
        read_checkpoint(file.parent, text_task(tiny_model))


NORM = "llm.model.norm.weight"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({NORM: None}, r"model\.norm\.weight is missing \(1 in all\); give the config that it was trained with"),
        ({"llm.model.extra": torch.ones(2)}, r"model\.extra does not belong to this model"),
        ({NORM: torch.ones(2)}, r"model\.norm\.weight has another shape"),
        ({"llm.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 2)}, r"contains an adapter and llm\."),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_no_file_is_written(tiny_model, tmp_path, changes, reason):
    weights = {name: value for name, value in (trained(stored(tiny_model)) | changes).items() if value is not None}
    as_pth(weights, tmp_path / "iter_1.pth")
    with pytest.raises(ModelError, match=reason):
        convert(tmp_path / "iter_1.pth", text_task(tiny_model), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["iter_1.pth"]


def test_a_full_model_and_an_adapter_are_distinguished(tiny_model, tmp_path):
    whole = as_pth(trained(stored(tiny_model)), tmp_path / "whole.pth")
    with pytest.raises(KitError, match="has the full language model, but its config does not train it; give the"):
        read_checkpoint(whole, text_task(tiny_model, lora={"rank": 4}))
    layer = "llm.base_model.model.model.layers.0.mlp.up_proj"
    state = {f"{layer}.lora_A.default.weight": torch.ones(4, 64), f"{layer}.lora_B.default.weight": torch.ones(128, 4)}
    with pytest.raises(KitError, match="has no full language model, but its config trains it; give the config"):
        read_checkpoint(as_pth(state, tmp_path / "adapter.pth"), text_task(tiny_model))


@pytest.fixture
def llava_pth(tiny_model: Path, towers: dict[str, Path], tmp_path: Path) -> Path:
    """XTuner's checkpoint of a fully fine-tuned LLaVA."""
    tower = {name.removeprefix("vision_model."): value for name, value in stored(towers["clip"]).items()}
    state = trained(stored(tiny_model)) | trained(tower, "visual_encoder.vision_model.")
    for name, value in new_projector(32, 64, seed=1).state_dict().items():
        layer, part = name.split(".")
        state[f"projector.model.{'0' if layer == 'linear_1' else '2'}.{part}"] = value
    return as_pth(state, tmp_path / "iter_1.pth")


def test_a_full_llava_becomes_an_image_run(tiny_model, towers, llava_pth, tmp_path):
    task = image_task(tiny_model, towers["clip"], whole_tower=True, start="gone.pth")
    original = torch.load(llava_pth, weights_only=True)["state_dict"]
    run = RunDir(convert(llava_pth, task, tmp_path / "run"))
    again, _ = read_task(run.task)
    assert isinstance(again, ImageTask) and again.full_finetuning and again.whole_tower and again.start is None
    for name, value in stored(run.model).items():
        assert torch.equal(value, original[f"llm.{name}"].bfloat16())
    tower = load_tower(str(run.adapter / TOWER_FOLDER), torch.device("cpu"), torch.float32)
    for name, value in tower.network.state_dict().items():
        assert torch.equal(value, original[f"visual_encoder.vision_model.{name}"])
    before = load_tower(task.tower, torch.device("cpu"), torch.float32)
    assert tower.preprocess == before.preprocess
    _, vlm_parts = load_finetuned(run, again, load_vlm_template(again))
    written = LlamaForCausalLM.from_pretrained(run.model, dtype=vlm_parts.language.network.dtype)
    assert torch.equal(logits(vlm_parts.language.network), logits(written))
    parts = f"set model={run.model} tower={run.adapter / TOWER_FOLDER} start={run.adapter / 'projector.safetensors'}."
    for start, fix in (
        (run.path, parts),
        (run.adapter, parts),
        (llava_pth, "convert it to a run with `twinlens convert"),
    ):
        with pytest.raises(ModelError, match=f"contains a full language model and a full tower; {re.escape(fix)}"):
            read_initial_parts(str(start))


def test_a_full_tower_of_another_config_is_refused(tiny_model, towers, llava_pth, tmp_path):
    original = torch.load(llava_pth, weights_only=True)["state_dict"]
    tower_pth = as_pth(
        {name: value for name, value in original.items() if not name.startswith("llm.")}, tmp_path / "eyes.pth"
    )
    with pytest.raises(KitError, match="has no full language model, but its config trains it"):
        read_checkpoint(tower_pth, image_task(tiny_model, towers["clip"], whole_tower=True))
    with pytest.raises(KitError, match="has the full tower, but its config does not train it"):
        read_checkpoint(llava_pth, image_task(tiny_model, towers["clip"]))
    with pytest.raises(ModelError, match=r"contains a full tower; convert it to a run"):
        read_initial_parts(str(tower_pth))
    task = image_task(tiny_model, towers["siglip"], whole_tower=True)
    with pytest.raises(ModelError, match=r"give the tower that it was trained from\."):
        convert(llava_pth, task, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_export_of_a_full_run_contains_only_the_projector(tiny_model, towers, llava_pth, tmp_path):
    task = image_task(tiny_model, towers["clip"], whole_tower=True)
    run = RunDir(convert(llava_pth, task, tmp_path / "run"))
    write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=False, safe=False)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["projector"]
    network, found = CLIPVisionModel.from_pretrained(run.adapter / TOWER_FOLDER, output_loading_info=True)
    assert not any(found.values()) and network.dtype == torch.float32
    text = RunDir(tmp_path / "text")
    text.path.mkdir()
    text.task.write_text(to_yaml(text_task(tiny_model)))
    with pytest.raises(KitError, match="not trained yet"):
        read_run(text, text_task(tiny_model))
    run.model.rename(text.model)
    with pytest.raises(KitError, match=r"trained the full model; give .*model to XTuner's chat\."):
        read_run(text, text_task(tiny_model))
