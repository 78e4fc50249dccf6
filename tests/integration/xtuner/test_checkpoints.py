"""Conversion of XTuner's checkpoints to twinlens and back; answers stay equal."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import FIXTURES
from peft import PeftModel
from tiny_internlm import make_internlm2
from tiny_vlm import answers_of_run, conversations, make_pictures
from torch import Tensor
from transformers import LlamaForCausalLM

from llm.internlm.adapter import load_llama_or_internlm2_adapter
from llm.internlm.loading import load_internlm
from llm.loading import load_model, load_template
from llm.settings import TextTask
from tuning.errors import ConfigError, ModelError
from tuning.modules.lora import attach_adapter, read_adapter_config, read_adapter_weights, save_adapter
from tuning.modules.pth import read_pth, state_dict_in
from tuning.run_dir import RunDir
from tuning.settings import Lora, Quant
from twinlens.chat_targets import open_target
from twinlens.task_files import read_task
from twinlens.tasks import to_yaml
from twinlens.xtuner.checkpoints import convert_checkpoint, read_checkpoint
from twinlens.xtuner.export import read_run, write_xtuner
from vlm.checkpoints.initialize import check_initial_parts
from vlm.export.llava import export
from vlm.settings import ImageTask

SAMPLES = FIXTURES / "xtuner_checkpoints"
IDS = torch.arange(30)[None]
LORA = Lora(rank=4, alpha=8)


def text_task(model: Path | str, **changes: object) -> TextTask:
    values = {"model": str(model), "data": {"files": ["none.jsonl"]}, "optim": {"steps": 1}, "lora": LORA.model_dump()}
    return TextTask.model_validate(values | changes)


def text_run(folder: Path, model: Path) -> RunDir:
    """A finished text run with a random adapter."""
    loaded = load_model(str(model), load_template(str(model), None), Quant(bits=16, compute="fp32"), "cpu")
    adapted = attach_adapter(loaded.model, LORA, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in (each for each in adapted.parameters() if each.requires_grad):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    run = RunDir(folder)
    save_adapter(adapted, run.adapter, str(model))
    run.task.write_text(to_yaml(text_task(model)), encoding="utf-8")
    return run


def as_pth(folder: Path, file: Path) -> Path:
    """The `.pth` checkpoint with the weights of XTuner's folders."""
    image = (folder / "projector").is_dir()
    state: OrderedDict[str, Tensor] = OrderedDict()
    for part, prefix in (("llm_adapter" if image else "", "llm."), ("visual_encoder_adapter", "visual_encoder.")):
        if (folder / part / "adapter_config.json").exists():
            weights = read_adapter_weights(folder / part)
            state |= {prefix + name.replace(".weight", ".default.weight"): value for name, value in weights.items()}
    if image:
        stored = folder / "projector" / "pytorch_model.bin"
        state |= {f"projector.{name}": value for name, value in state_dict_in(read_pth(stored), stored).items()}
    torch.save({"state_dict": state, "meta": {"iter": 1}}, file)
    return file


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def test_text_run_exported_to_xtuner_and_back_is_unchanged(tiny_model, tmp_path):
    run = text_run(tmp_path / "run", tiny_model)
    task, _ = read_task(run.task)
    write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=True, safe=False)
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    given = logits(PeftModel.from_pretrained(model, str(tmp_path / "theirs")))
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert torch.equal(given, logits(PeftModel.from_pretrained(model, str(run.adapter))))
    parts = read_checkpoint(as_pth(tmp_path / "theirs", tmp_path / "iter_1.pth"), task)
    convert_checkpoint(parts, task, tmp_path / "ours")
    back, was = (read_adapter_weights(folder) for folder in (tmp_path / "ours", run.adapter))
    assert back.keys() == was.keys() and all(torch.equal(back[name], was[name]) for name in was)
    ours, theirs = (read_adapter_config(folder) for folder in (tmp_path / "ours", run.adapter))
    assert ours.pop("target_modules") == sorted({name.rpartition(".")[2] for name in theirs.pop("target_modules")})
    assert ours == theirs


def test_a_deepspeed_folder_is_read(tiny_model, tmp_path):
    run = text_run(tmp_path / "run", tiny_model)
    task, _ = read_task(run.task)
    write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=True, safe=True)
    state = torch.load(as_pth(tmp_path / "theirs", tmp_path / "iter_1.pth"), weights_only=True)["state_dict"]
    (tmp_path / "folder.pth").mkdir()
    torch.save({"module": state, "ds_config": {}}, tmp_path / "folder.pth" / "mp_rank_00_model_states.pt")
    convert_checkpoint(read_checkpoint(tmp_path / "folder.pth", task), task, tmp_path / "ours")
    back, was = (read_adapter_weights(folder) for folder in (tmp_path / "ours", run.adapter))
    assert back.keys() == was.keys() and all(torch.equal(back[name], was[name]) for name in was)


def test_export_on_internlm2_has_fused_layers_and_equal_logits(tiny_model, tmp_path):
    base = make_internlm2(tiny_model, tmp_path / "base")
    run = text_run(tmp_path / "run", base)
    task, _ = read_task(run.task)
    write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=True, safe=True)
    config = read_adapter_config(tmp_path / "theirs")
    assert config["target_modules"] == ["w1", "w2", "w3", "wo", "wqkv"]
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"wqkv": 12}, {"wqkv": 24})
    given, was = (
        logits(load_llama_or_internlm2_adapter(load_internlm(base, dtype=torch.float32), folder))
        for folder in (tmp_path / "theirs", run.adapter)
    )
    assert torch.allclose(given, was, rtol=1e-4, atol=1e-4 * float(was.abs().max()))


def test_fused_adapters_are_split_for_peft_and_stay_fused_for_xtuner(tiny_model, tmp_path):
    base = make_internlm2(tiny_model, tmp_path / "base")
    shapes = {"attention.wqkv": (128, 64), "attention.wo": (64, 64), "feed_forward.w2": (64, 128)}
    state = {
        f"llm.base_model.model.model.layers.{layer}.{name}.lora_{side}.default.weight": torch.randn(shape) * 0.1
        for layer in range(2)
        for name, (outputs, inputs) in shapes.items()
        for side, shape in (("A", (4, inputs)), ("B", (outputs, 4)))
    }
    torch.save({"state_dict": state}, tmp_path / "iter_1.pth")
    task = text_task(base)
    parts = read_checkpoint(tmp_path / "iter_1.pth", task)
    write_xtuner(parts, task, tmp_path / "theirs", fp32=True, safe=False)
    convert_checkpoint(parts, task, tmp_path / "ours")
    theirs = read_adapter_weights(tmp_path / "theirs")
    assert theirs.keys() == {name.removeprefix("llm.").replace(".default", "") for name in state}
    assert "rank_pattern" not in read_adapter_config(tmp_path / "theirs")
    assert read_adapter_config(tmp_path / "ours")["target_modules"] == sorted(
        ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    )
    given, fused = (
        logits(load_llama_or_internlm2_adapter(load_internlm(base, dtype=torch.float32), tmp_path / folder))
        for folder in ("ours", "theirs")
    )
    assert torch.equal(given, fused)
    opened = open_target(str(tmp_path / "ours"), None, 16)
    assert opened.model.get_base_model().config.model_type == "llama"


@pytest.fixture
def image_run(make_run: Callable[..., RunDir], tmp_path: Path) -> RunDir:
    return make_run(tower_lora=True)


def test_image_run_exported_to_xtuner_and_back_gives_the_same_answers(image_run, tmp_path):
    task, _ = read_task(image_run.task)
    assert isinstance(task, ImageTask) and task.tower_lora is not None
    write_xtuner(read_run(image_run, task), task, tmp_path / "theirs", fp32=True, safe=False)
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == [
        "llm_adapter",
        "projector",
        "visual_encoder_adapter",
    ]
    projector = json.loads((tmp_path / "theirs" / "projector" / "config.json").read_text())
    assert (projector["model_type"], projector["depth"], "auto_map" in projector) == ("projector", 2, False)
    check_initial_parts(str(tmp_path / "theirs"), 32, 64, task.lora, task.tower_lora)

    started = task.model_copy(update={"start": "gone.pth"})
    parts = read_checkpoint(as_pth(tmp_path / "theirs", tmp_path / "iter_1.pth"), started)
    convert_checkpoint(parts, started, tmp_path / "ours")
    made = RunDir(tmp_path / "ours")
    asked = conversations(make_pictures(tmp_path))
    assert answers_of_run(made, asked) == answers_of_run(image_run, asked)
    check_initial_parts(str(made.path), 32, 64, task.lora, task.tower_lora)
    again, _ = read_task(made.task)
    assert isinstance(again, ImageTask)
    assert export(made, again, tmp_path / "llava", None, "2GB").layout == "hf"


def test_projector_only_checkpoint_becomes_an_align_run(image_run, tmp_path):
    task, _ = read_task(image_run.task)
    align = ImageTask.model_validate(task.model_dump() | {"stage": "align", "tower_lora": None})
    parts = replace(read_run(image_run, task), language=None, tower=None)
    write_xtuner(parts, align, tmp_path / "theirs", fp32=False, safe=False)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["projector"]
    file = as_pth(tmp_path / "theirs", tmp_path / "iter_1.pth")
    convert_checkpoint(read_checkpoint(file, align), align, tmp_path / "ours")
    asked = conversations(make_pictures(tmp_path))
    assert len(answers_of_run(RunDir(tmp_path / "ours"), asked)) == len(asked)
    with pytest.raises(ConfigError, match="has no adapter of the language model, but its config trains it"):
        read_checkpoint(file, task)
    with pytest.raises(ConfigError, match="has the projector, but its config does not train it"):
        read_checkpoint(file, text_task(task.model))


def test_a_config_of_another_run_is_refused(tiny_model, tmp_path):
    run = text_run(tmp_path / "run", tiny_model)
    task, _ = read_task(run.task)
    write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=False, safe=False)
    file = as_pth(tmp_path / "theirs", tmp_path / "iter_1.pth")
    with pytest.raises(ModelError, match=r"has rank 4, and this run has rank 16; set lora.rank=4\."):
        read_checkpoint(file, text_task(tiny_model, lora={"rank": 16}))
    stored = torch.load(file, weights_only=True)
    config = "model = dict(lora=dict(lora_alpha=6, r=4, type='peft.LoraConfig'))"
    torch.save(stored | {"meta": {"cfg": config}}, file)
    with pytest.raises(ModelError, match=r"set lora.rank=4 lora.alpha=6"):
        read_checkpoint(file, task)
    with pytest.raises(ConfigError, match="already exists"):
        write_xtuner(read_run(run, task), task, tmp_path / "theirs", fp32=False, safe=False)


def test_an_unsupported_tower_is_refused(make_run):
    run = make_run("siglip")
    task, _ = read_task(run.task)
    with pytest.raises(ModelError, match=r"is not a CLIP of transformers"):
        read_run(run, task)


@pytest.mark.parametrize(
    ("file", "folder", "parts"),
    [
        ("text_lora_iter_12.pth", "hf_tl", {"adapter_model.bin"}),
        (
            "llava_ft_iter_8.pth",
            "hf_lf",
            {
                "llm_adapter/adapter_model.bin",
                "visual_encoder_adapter/adapter_model.bin",
                "projector/pytorch_model.bin",
            },
        ),
    ],
)
def test_layout_equals_files_that_xtuner_wrote(tmp_path, file, folder, parts):
    task, _ = read_task(SAMPLES / folder / "xtuner_config.py")
    write_xtuner(read_checkpoint(SAMPLES / file, task), task, tmp_path / "ours", fp32=False, safe=False)
    for part in parts:
        ours, theirs = (
            state_dict_in(read_pth(root / part), root / part) for root in (tmp_path / "ours", SAMPLES / folder)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
        described = [
            json.loads((root / part).parent.joinpath("adapter_config.json").read_text())
            for root in (tmp_path / "ours", SAMPLES / folder)
            if "adapter" in part
        ]
        for key in (
            ("r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "task_type", "bias") if described else ()
        ):
            assert described[0][key] == described[1][key], key
