"""A tiny finished image run, made without training."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from llm.chat_template.encoding import ChatTemplate
from llm.generation import generate_answers
from llm.loading import load_model
from tuning.data.conversation import Conversation, Turn, single_turn
from tuning.run_dir import RunDir
from twinlens.task_files import read_task
from twinlens.tasks import to_yaml
from vlm.features import LiveFeatures, PictureTable
from vlm.finetuned import load_trained_weights, save_trained_weights
from vlm.loading import build_vlm, make_embed_function, make_initial_parts
from vlm.recipe import load_vlm_template
from vlm.settings import ImageTask

SYSTEM = 'You are "the assistant" {of} two\nlines \\ 你是小助手 😀 %}.'
SIZES = {"image_size": 28, "patch_size": 14, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}


def make_towers(folder: Path) -> dict[str, Path]:
    """A CLIP tower that crops its pictures, and a SigLIP tower with another normalization; three layers each."""
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SIZES, num_attention_heads=2, initializer_range=0.2))
    siglip = SiglipVisionModel(SiglipVisionConfig(**SIZES, num_attention_heads=2))
    crops = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    colors = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    plain = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, network, settings in (("clip", clip, crops | colors), ("siglip", siglip, plain)):
        network.save_pretrained(folder / name)
        text = json.dumps(settings | {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3})
        (folder / name / "preprocessor_config.json").write_text(text)
    return {name: folder / name for name in ("clip", "siglip")}


def make_finished_run(folder: Path, model: Path, tower: str, tower_lora: bool, **changes: object) -> RunDir:
    """A run with large random trained weights, so that each of them changes the answers."""
    values = {
        "model": str(model),
        "tower": tower,
        "system": SYSTEM,
        "stage": "tune",
        "quant": {"bits": 16, "compute": "fp32"},
        "lora": {"rank": 4, "alpha": 8},
        "tower_lora": {"rank": 2, "alpha": 4} if tower_lora else None,
        "data": {"files": ["none.jsonl"]},
        "optim": {"steps": 1},
    }
    task = ImageTask.model_validate(values | changes)
    template = load_vlm_template(task)
    parts = make_initial_parts(task, load_model(task.model, template, task.quant, "cpu"))
    generator = torch.Generator().manual_seed(1)
    modules = [parts.language.network, parts.projector, parts.tower_weights.network]
    for parameter in (parameter for part in modules for parameter in part.parameters() if parameter.requires_grad):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    run = RunDir(folder)
    save_trained_weights(parts, run.adapter)
    run.task.write_text(to_yaml(task), encoding="utf-8")
    return run


def make_pictures(folder: Path) -> list[Path]:
    """Three pictures, one of them not square."""
    made = []
    for number, size in enumerate([(32, 32), (32, 20), (28, 28)]):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        made.append(folder / f"{number}.png")
    return made


def read(run: RunDir) -> tuple[ImageTask, ChatTemplate]:
    """The task of a run and its chat template."""
    task, _ = read_task(run.task)
    assert isinstance(task, ImageTask)
    return task, load_vlm_template(task)


def conversations(pictures: list[Path]) -> list[Conversation]:
    """A conversation of two rounds with three pictures, one with one picture, one without pictures."""
    first, second, third = map(str, pictures)
    several = (
        Turn("user", "<image>\nWhat is the colour of <image>?"),
        Turn("assistant", "Red and blue."),
        Turn("user", "And who is <image>?"),
    )
    one = (Turn("user", "<image>\nWhat is the colour of the house?"),)
    return [
        Conversation(several, (first, second, third)),
        Conversation(one, (second,)),
        single_turn("Who are you? 你是谁"),
    ]


def answers_of_run(run: RunDir, asked: list[Conversation]) -> list[str]:
    """The answers of a run, with its adapters on the base model."""
    task, template = read(run)
    parts = make_initial_parts(task, load_model(task.model, template, task.quant, "cpu"))
    load_trained_weights(parts, run.adapter)
    table = PictureTable()
    module = build_vlm(parts, LiveFeatures(parts.tower, table, 0), torch.float32)
    answers = generate_answers(parts.language.network, template, asked, 12, embed=make_embed_function(module, table))
    return [answer.text for answer in answers]
