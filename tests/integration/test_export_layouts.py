"""LLaVA export to the official layout and to parts; failed exports leave no files."""

import json
from pathlib import Path

import pytest
import torch
from tiny_vlm import answers_of_run, conversations, read

from llm.generation import generate_answers
from llm.loading import load_model
from tuning.errors import ConfigError, DeviceError, KitError, ModelError
from twinlens.cli.convert import llava as convert_llava
from vlm.checkpoints.initialize import check_initial_parts, load_initial_parts
from vlm.export.llava import export
from vlm.features import LiveFeatures, PictureTable
from vlm.loading import build_vlm, make_embed_function, make_initial_parts
from vlm.projector import Projector


@pytest.mark.parametrize("tower_lora", [False, True])
def test_official_llava_layout_is_complete_and_its_projector_reloads(make_run, towers, tmp_path, tower_lora):
    from safetensors.torch import load_file

    run = make_run("clip", tower_lora)
    report = export(run, read(run)[0], tmp_path / "out", "official", "100KB")
    assert report.exported.difference <= 1e-5
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        weights |= load_file(shard)
    inside = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert (inside in weights) == tower_lora
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.mm_projector.2.bias"} <= weights.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "architectures": ["LlavaLlamaForCausalLM"], "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False, "mm_vision_tower": str(towers["clip"]), "unfreeze_mm_vision_tower": tower_lora,
    }  # fmt: skip
    assert expected.items() <= config.items()
    start = check_initial_parts(str(tmp_path / "out"), 32, 64)
    again, was = Projector(32, 64), Projector(32, 64)
    load_initial_parts(start, again, None, None)
    load_initial_parts(check_initial_parts(str(run.adapter / "projector.safetensors"), 32, 64), was, None, None)
    for name, value in was.named_parameters():
        assert torch.equal(again.get_parameter(name), value.to(torch.bfloat16).float())


def test_task_from_exported_parts_gives_the_same_answers(make_run, pictures, tmp_path):
    run = make_run("clip", True)
    task, template = read(run)
    out = tmp_path / "out"
    report = export(run, task, out, "parts", "2GB")
    assert report.exported.difference <= 1e-5
    assert f"start: {out}/projector.safetensors" in (out / "README.md").read_text()
    again = task.model_copy(
        update={
            "stage": "align", "tower_lora": None, "model": str(out / "language"), "tower": str(out / "tower"),
            "start": str(out / "projector.safetensors"),
        }
    )  # fmt: skip
    vlm_parts = make_initial_parts(again, load_model(again.model, template, task.quant, "cpu"))
    table = PictureTable()
    module = build_vlm(vlm_parts, LiveFeatures(vlm_parts.tower, table, 0), torch.float32)
    asked = conversations(pictures)
    answers = generate_answers(
        vlm_parts.language.network, template, asked, 12, embed=make_embed_function(module, table)
    )
    assert [answer.text for answer in answers] == answers_of_run(run, asked)


def test_a_tower_without_a_class_in_transformers_is_exported_as_parts(make_run, tmp_path, capsys):
    pytest.importorskip("timm")
    try:
        run = make_run("embedded")
    except ModelError as error:
        pytest.skip(str(error))
    convert_llava(run.path, tmp_path / "out", None, "2GB", False)
    output = capsys.readouterr().out
    assert "layout: parts, because transformers' LLaVA has no class for the tower embedded" in output
    assert f"next: twinlens chat {tmp_path / 'out' / 'language'}" in output
    assert "tower: `embedded`, not fine-tuned and not copied" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "tower").exists()
    for layout in ("hf", "official"):
        with pytest.raises(ConfigError, match=f"--layout {layout}: .* not embedded; use --layout"):
            convert_llava(run.path, tmp_path / "other", layout, "2GB", False)


def test_errors_of_export_are_one_sentence(make_run, tiny_model, tmp_path):
    run = make_run()

    def refused(run: Path, destination: Path, layout: str | None = None) -> str:
        with pytest.raises(KitError) as caught:
            convert_llava(run, destination, layout, "2GB", False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    out = tmp_path / "out"
    assert "not a run folder" in refused(tmp_path, out)
    assert "already exists" in refused(run.path, run.path)
    with pytest.raises(ConfigError, match="write one such as 500MB"):
        convert_llava(run.path, out, None, "huge", False)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run.path, tmp_path / "file" / "out")
    (run.adapter / "projector.safetensors").unlink()
    assert "not trained yet" in refused(run.path, out)
    text = tmp_path / "text"
    text.mkdir()
    (text / "task.yaml").write_text(f"model: {tiny_model}\ndata:\n  files: [a.jsonl]\noptim:\n  steps: 1\n")
    assert "is a text run; use `twinlens convert merge" in refused(text, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_a_failed_export_leaves_no_files(make_run, tmp_path, monkeypatch):
    run = make_run()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm.export.llava.save_native", full)
    with pytest.raises(DeviceError, match="No space left"):
        export(run, read(run)[0], tmp_path / "out", None, "2GB")
    assert not list(tmp_path.glob("*out*"))
