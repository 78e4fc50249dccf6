"""HF-native export: plain transformers gives the same logits, ids and answers as the run."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import SYSTEM, answers_of_run, conversations, read
from transformers import AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from llm.chat_template.encoding import ChatTemplate
from llm.loading import load_model
from tuning.data.conversation import Conversation, single_turn
from tuning.settings import Quant
from tuning.training.samples import IMAGE_TOKEN_INDEX
from vlm.export.layouts import MergedParts, resize_vocabulary, to_native_llava
from vlm.export.llava import example_picture, export, native_logits, spliced_logits
from vlm.export.processor import make_processor, tokenizer_with_image
from vlm.projector import Projector
from vlm.towers.preprocess import Preprocess
from vlm.towers.registry import load_tower
from vlm.towers.tower import TowerFacts


def plain_answers(folder: str, asked: list) -> list[dict]:
    """Token ids and answers of plain transformers; its source is also run in a separate process."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    results = []
    for messages, files in asked:
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        pictures = [Image.open(file).convert("RGB") for file in files]
        inputs = processor(text=text, images=pictures or None, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        answer = processor.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        results.append({"ids": inputs["input_ids"][0].tolist(), "answer": answer})
    return results


def as_messages(asked: list[Conversation]) -> list:
    return [
        ([{"role": turn.role, "content": turn.content} for turn in conversation.turns], list(conversation.images))
        for conversation in asked
    ]


def expected_ids(template: ChatTemplate, asked: list[Conversation], folder: Path) -> list[list[int]]:
    image_id = json.loads((folder / "config.json").read_text())["image_token_index"]
    prompts = [template.prompt(conversation) for conversation in asked]
    return [[image_id if index == IMAGE_TOKEN_INDEX else index for index in prompt] for prompt in prompts]


@pytest.mark.parametrize(("tower", "tower_lora"), [("clip", True), ("siglip", False)])
def test_transformers_gives_the_same_ids_and_answers(make_run, pictures, tmp_path, monkeypatch, tower, tower_lora):
    monkeypatch.setattr("vlm.export.llava.checkpoint_dtype", lambda _: torch.float32)  # without rounding
    run = make_run(tower, tower_lora)
    task, template = read(run)
    report = export(run, task, tmp_path / "out", None, "2GB")
    assert report.layout == "hf" and report.exported.difference <= 1e-5 and report.rounded.difference == 0
    asked = conversations(pictures)
    results = plain_answers(str(tmp_path / "out"), as_messages(asked))
    assert [each["ids"] for each in results] == expected_ids(template, asked, tmp_path / "out")
    assert [each["answer"] for each in results] == answers_of_run(run, asked)
    if tower == "clip":
        code = (
            f"import json, sys\n{inspect.getsource(plain_answers)}\n"
            "print(json.dumps(plain_answers(sys.argv[1], json.loads(sys.argv[2]))))\n"
            "assert not {'twinlens', 'vlm', 'llm', 'tuning'} & set(sys.modules)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "out"), json.dumps(as_messages(asked))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == results


def test_the_config_files_have_llavas_settings(make_run, tiny_model, tmp_path):
    run = make_run()
    task, template = read(run)
    report = export(run, task, tmp_path / "out", "hf", "2GB")
    assert report.dtype == "bfloat16" and 0 < report.rounded.difference < 0.1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    old = LlamaConfig.from_pretrained(tiny_model).vocab_size
    assert config["image_token_index"] >= old and config["text_config"]["vocab_size"] % 64 == 0
    assert (config["image_seq_length"], config["vision_feature_layer"]) == (4, -2)
    assert (config["vision_feature_select_strategy"], config["projector_hidden_act"]) == ("default", "gelu")
    assert config["multimodal_projector_bias"] is True and config["text_config"]["rope_theta"] == 10000.0
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(template.stop_ids)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert (processor.patch_size, processor.num_additional_image_tokens) == (14, 1)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16


def test_message_contents_can_be_lists_with_pictures(make_run, tmp_path):
    run = make_run("siglip")
    task, template = read(run)
    export(run, task, tmp_path / "out", "hf", "2GB")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    text = {"type": "text", "text": "What is it?"}
    listed = [{"role": "user", "content": [{"type": "image"}, text]}]
    plain = [{"role": "user", "content": "<image>\nWhat is it?"}]
    rendered = processor.apply_chat_template(listed, add_generation_prompt=True)
    assert rendered == processor.apply_chat_template(plain, add_generation_prompt=True)
    assert SYSTEM in rendered
    own = [{"role": "system", "content": "Mine."}, *plain]
    assert SYSTEM not in processor.apply_chat_template(own)
    picture = example_picture()
    whole = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture}, text]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    image_id = processor.image_token_id
    ours = template.prompt(single_turn("<image>\nWhat is it?"))
    assert whole["input_ids"][0].tolist() == [image_id if index == IMAGE_TOKEN_INDEX else index for index in ours]
    assert whole["pixel_values"].shape == (1, 3, 28, 28)


def test_a_tokenizer_that_adds_bos_gives_the_same_ids(make_run, tiny_model, pictures, tmp_path):
    from tokenizers.processors import TemplateProcessing

    base = tmp_path / "base"
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(base)
    words = AutoTokenizer.from_pretrained(tiny_model)
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words.save_pretrained(base)
    assert AutoTokenizer.from_pretrained(base)("a")["input_ids"][0] == 1
    run = make_run(model=base)
    task, template = read(run)
    export(run, task, tmp_path / "out", None, "2GB")
    processor, asked = AutoProcessor.from_pretrained(tmp_path / "out"), conversations(pictures)
    for (messages, files), ids in zip(as_messages(asked), expected_ids(template, asked, tmp_path / "out"), strict=True):
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        given = processor(text=text, images=[Image.open(file) for file in files] or None, return_tensors="pt")
        assert given["input_ids"][0].tolist() == ids


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_our_logits_equal_transformers_llava(make_run, towers, tower):
    task, template = read(make_run(tower))
    language = load_model(task.model, template, Quant(bits=16, compute="fp32"), "cpu").model
    vision_tower = load_tower(str(towers[tower]), torch.device("cpu"), torch.float32)
    projector = Projector(vision_tower.width, 64)
    pixels = vision_tower.preprocess(example_picture())
    ours = spliced_logits(language, projector, vision_tower, template)
    resize_vocabulary(language, len(template.tokenizer) + 1)
    model = to_native_llava(MergedParts(language, projector, vision_tower, False), len(template.tokenizer))
    theirs = native_logits(model, template, pixels)[:, : ours.shape[1]]
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    assert (theirs.argmax(-1) < len(template.tokenizer)).all()


def test_the_processors_pixels_equal_ours_except_for_resizing(make_run, towers, tmp_path):
    run = make_run()
    task, _ = read(run)
    export(run, task, tmp_path / "out", "hf", "2GB")
    vision_tower = load_tower(str(towers["clip"]), torch.device("cpu"), torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for size in ((32, 32), (32, 20), (90, 50), (41, 130)):
        pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        picture = Image.fromarray(pixels).resize(size)
        theirs = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        assert (theirs - vision_tower.preprocess(picture)).abs().max() < (1e-5 if max(size) == 32 else 0.05)


def test_a_head_tied_to_the_embedding_stays_tied(make_run, tiny_model, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tied")
    run = make_run(model=tmp_path / "tied", stage="align")  # without an adapter on the language model
    report = export(run, read(run)[0], tmp_path / "out", None, "2GB")
    assert report.exported.difference <= 1e-5
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_clip_at_336_has_576_features_and_projectors_have_the_sizes_of_llava(make_run, tmp_path):
    """576 features for each picture in processor and tower, and the sizes of LLaVA-1.5's projectors."""
    network = SimpleNamespace(config=SimpleNamespace(patch_size=14))
    normalization = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    facts = TowerFacts(patches=576, width=1024, size=336, kind="clip")
    tower = SimpleNamespace(facts=facts, network=network, preprocess=Preprocess(336, 336, *normalization))
    assert tower.preprocess.padding_color == (122, 116, 104)
    _, template = read(make_run())
    tokenizer, image_id = tokenizer_with_image(template)
    given = make_processor(tower, tokenizer)(text="<image>", images=Image.new("RGB", (576, 300)), return_tensors="pt")
    assert given["input_ids"][0].tolist() == [image_id] * 576
    above = torch.tensor([122, 116, 104]) / 255
    shown = (above - torch.tensor(normalization[0])) / torch.tensor(normalization[1])
    assert torch.allclose(given["pixel_values"][0, :, 40, 168], shown, atol=1e-5)
    for hidden, parameters in ((2048, 6_295_552), (4096, 20_979_712), (6144, 44_052_480)):
        with torch.device("meta"):
            assert sum(each.numel() for each in Projector(1024, hidden).parameters()) == parameters
