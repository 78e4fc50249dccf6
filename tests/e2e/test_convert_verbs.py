"""`twinlens convert` from the command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pickled import Harm
from tiny_internlm import make_internlm2
from tiny_vlm import make_towers

from llm.checkpoints.embedded import embedded_folder
from llm.checkpoints.shards import lazy_weights
from llm.settings import TextTask
from twinlens.cli.convert import _xtuner_chat
from vlm.projector import new_projector

Refused = Callable[..., str]


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Path:
    """A task, its InternLM2 base, and an XTuner checkpoint of the task."""
    base = make_internlm2(tiny_model, tmp_path / "base")
    (tmp_path / "task.yaml").write_text(
        f"model: {base}\ndata: {{files: [none.jsonl]}}\noptim: {{steps: 1}}\nlora: {{rank: 2, alpha: 4}}\n"
    )
    state: dict[str, torch.Tensor] = {}
    for layer in (0, 1):
        at = f"llm.base_model.model.model.layers.{layer}.attention.wqkv"
        state |= {f"{at}.lora_A.default.weight": torch.ones(2, 64), f"{at}.lora_B.default.weight": torch.ones(128, 2)}
    torch.save({"state_dict": state}, tmp_path / "iter_9.pth")
    return tmp_path


def test_pth_to_merged_model_in_both_layouts(run_json, trained):
    adapter = run_json(
        "convert", "pth_to_hf", "task.yaml", "iter_9.pth", "adapter", "--fp32", "--max-shard-size", "1GB"
    )
    assert (adapter["parts"], adapter["next"]) == (["adapter"], "twinlens chat adapter")
    theirs = run_json("convert", "pth_to_hf", "task.yaml", "iter_9.pth", "theirs", "--save-format", "xtuner")
    assert theirs["next"] == f"xtuner chat {trained / 'base'} --adapter theirs"
    for adapter, layout in (("adapter", "hf"), ("theirs", "internlm2")):
        flags = ("--layout", layout, "--device", "cpu", "--template", "internlm2_chat", "--safe-serialization")
        merged = run_json("convert", "merge", "base", adapter, layout, *flags)
        tokens = json.loads((trained / layout / "tokenizer_config.json").read_text())
        written = trained / layout / "chat_template.jinja"
        assert "<|im_start|>" in (written.read_text() if written.exists() else tokens["chat_template"])
        assert (merged["layout"], merged["next"]) == (layout, f"twinlens chat {layout}")
    assert run_json("convert", "internlm", "internlm2", "llama")["weights"] > 10
    for weights in ("hf", "llama"):
        assert (trained / weights / "model.safetensors").exists()


def test_pth_of_a_full_model_to_a_model_folder(run_json, refused, trained):
    weights = {f"llm.{name}": weight.read().float() for name, weight in lazy_weights(trained / "base").items()}
    torch.save({"state_dict": weights}, trained / "iter_9.pth")
    pth = ("convert", "pth_to_hf", "task.yaml", "iter_9.pth")
    whole = ("lora=null", "quant.bits=16")
    assert "has the full language model, but its config does not train it" in refused(*pth, "model")
    assert "omit --layout" in refused(*pth, "model", *whole, "--layout", "xtuner")
    made = run_json(*pth, "model", *whole, "--max-shard-size", "100KB")
    assert (made["layout"], made["parts"], made["next"]) == ("hf", ["model"], "twinlens chat model")
    assert len(list((trained / "model").glob("*.safetensors"))) > 1
    run_json(*pth, "exact", *whole, "--fp32")
    for folder, dtype in (("model", torch.bfloat16), ("exact", torch.float32)):
        assert {weight.dtype for weight in lazy_weights(trained / folder).values()} == {dtype}


def test_a_fully_trained_image_run_converts_to_xtuner(run_json, refused, trained, tiny_model):
    tower, projector = make_towers(trained)["clip"], new_projector(32, 64, seed=1)
    (trained / "task.yaml").write_text(
        f"model: {tiny_model}\ntower: {tower}\ndata: {{files: [none.jsonl]}}\noptim: {{steps: 1}}\nlora: null\n"
        "quant: {bits: 16}\nwhole_tower: true\n"
    )
    weights = {f"llm.{name}": weight.read() for name, weight in lazy_weights(tiny_model).items()}
    weights |= {f"visual_encoder.{name}": weight.read() for name, weight in lazy_weights(tower).items()}
    weights |= {f"mm_projector.{name}": value for name, value in projector.state_dict().items()}
    torch.save({"state_dict": weights}, trained / "iter_9.pth")
    pth = ("convert", "pth_to_hf", "task.yaml", "iter_9.pth")
    assert "then `twinlens convert xtuner RUN theirs`" in refused(*pth, "theirs", "--layout", "xtuner")
    made = run_json(*pth, "run")
    assert (made["parts"], made["next"]) == (["model", "tower", "projector"], "twinlens chat run")
    following = shlex.split(run_json("convert", "xtuner", "run", "theirs")["next"])
    assert following[:5] == ["xtuner", "chat", "run/model", "--visual-encoder", "run/adapter/tower"]


def test_conversion_errors(refused: Refused, trained: Path) -> None:
    pth = ("convert", "pth_to_hf", "task.yaml", "iter_9.pth", "out")
    assert "twinlens convert llava out LLAVA" in refused(*pth, "--save-format", "official")
    assert "one of 'peft', 'xtuner'" in refused(*pth, "--layout", "other")
    assert "set lora.rank=2" in refused(*pth, "lora.rank=8")
    for size in ("big", "0GB"):
        assert "not a size" in refused(*pth, "--max-shard-size", size)
    assert "give the iter_N.pth" in refused("convert", "pth_to_hf", "task.yaml", "gone.pth", "out")
    assert "neither a file nor a shipped task" in refused("convert", "pth_to_hf", "gone.py", "iter_9.pth", "out")
    assert "one of 'hf', 'internlm2'" in refused("convert", "merge", "base", "adapter", "out", "--layout", "other")
    assert "one of 'cpu', 'cuda', 'auto'" in refused("convert", "merge", "base", "adapter", "out", "--device", "npu")
    layouts = "one of 'hf', 'official', 'parts'"
    assert layouts in refused("convert", "llava", "run", "out", "--layout", "gguf")
    assert "give TOWER ADAPTER DEST" in refused("convert", "merge", "tower", "out", "--is-clip")
    tower = ("convert", "merge", "tower", "adapter", "out", "--is-clip")
    assert "neither --layout nor --template" in refused(*tower, "--layout", "internlm2")
    assert "not a run folder" in refused("convert", "xtuner", "base", "out")
    (trained / "seen").mkdir()
    eyes = "model: base\ntower: embedded\ndata: {files: [rows.jsonl]}\n"
    (trained / "seen" / "task.yaml").write_text(eyes)
    said = refused("convert", "merge", "seen", "out")
    assert said == "error: seen/task.yaml: set either optim.steps or optim.epochs, not both."
    (trained / "seen" / "task.yaml").write_text(eyes + "optim: {steps: 1}\n")
    assert "use `twinlens convert llava seen out`" in refused("convert", "merge", "seen", "out")
    assert not (trained / "out").exists()


def test_code_in_a_pth_is_not_run(refused: Refused, trained: Path) -> None:
    torch.save({"state_dict": {"llm.x": torch.ones(1)}, "message_hub": Harm(trained / "ran")}, trained / "iter_9.pth")
    for layout in ("peft", "xtuner"):
        said = refused("convert", "pth_to_hf", "task.yaml", "iter_9.pth", "out", "--layout", layout)
        assert "which weights do not need, so nothing of it was run" in said
    assert not (trained / "ran").exists() and not (trained / "out").exists()


def test_xtuner_chat_gets_the_folder_of_the_embedded_model():
    task = TextTask.model_validate({"model": "embedded", "data": {"files": ["a.jsonl"]}, "optim": {"steps": 1}})
    assert shlex.split(_xtuner_chat(task, Path("out")))[2] == str(embedded_folder())
