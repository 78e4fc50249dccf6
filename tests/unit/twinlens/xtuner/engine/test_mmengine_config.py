"""The mmengine config of a run has the values of the task."""

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.settings import TextTask
from tuning.settings import Optim, Task
from tuning.training.lr_schedule import warmup_steps
from twinlens.xtuner.engine.mmengine_config import config_text
from vlm.settings import ImageTask

OPTIM = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 50),
        "micro_batch": st.integers(1, 8),
        "accumulate": st.integers(1, 8),
        "warmup": st.sampled_from([0.0, 0.03, 0.5]),
        "schedule": st.sampled_from(["cosine", "linear", "constant"]),
        "learning_rate": st.sampled_from([2e-4, 1e-3]),
    }
)
QUANT = st.fixed_dictionaries({"bits": st.sampled_from([4, 8, 16])})
COMPUTE = st.sampled_from(["bfloat16", "float16", "float32"])


def read(text: str) -> dict[str, Any]:
    """The config's values, names as strings; the config is not run."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Dict):
            return {value(key): value(each) for key, each in zip(node.keys, node.values, strict=True) if key}
        if isinstance(node, ast.List | ast.Tuple):
            return [value(each) for each in node.elts]
        return node.value if isinstance(node, ast.Constant) else ast.unparse(node)

    return {
        node.targets[0].id: value(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def config_of(task: Task, compute: str, on_gpu: bool) -> dict[str, Any]:
    iters = (task.optim.steps or 0) * task.optim.accumulate
    return read(config_text(task, Path("/run's"), iters, compute, on_gpu))


@given(OPTIM, QUANT, COMPUTE, st.booleans())
def test_config_of_a_text_task(optim, quant, compute, on_gpu):
    task = TextTask.model_validate({"model": "m", "data": {"files": ["x"]}, "optim": optim, "quant": quant})
    config = config_of(task, compute, on_gpu)
    assert config["model"]["llm"]["pretrained_model_name_or_path"] == "/run's/model"
    assert config["model"]["llm"]["trust_remote_code"] is False
    assert (config["model"]["llm"].get("quantization_config") is None) == (quant["bits"] == 16)
    lora = config["model"]["lora"]
    assert (lora["r"], lora["lora_alpha"], lora["target_modules"]) == (task.lora.rank, task.lora.alpha, None)
    assert config["train_dataloader"]["batch_size"] == optim["micro_batch"]
    wrapper = config["optim_wrapper"]
    assert wrapper["accumulative_counts"] == optim["accumulate"]
    assert (wrapper["type"] == "AmpOptimWrapper") == (on_gpu and compute != "float32"), (
        "mmengine has no autocast on a CPU"
    )
    assert on_gpu or config["model"]["llm"]["torch_dtype"] == "torch.float32"


@given(OPTIM)
def test_the_schedule_covers_the_run(optim):
    task = TextTask.model_validate({"model": "m", "data": {"files": ["x"]}, "optim": optim})
    parts = config_of(task, "float32", False)["param_scheduler"]
    assert parts[-1]["end"] == optim["steps"] * optim["accumulate"]
    assert parts[-1]["begin"] == warmup_steps(optim["warmup"], optim["steps"]) * optim["accumulate"]
    assert all(part["begin"] < part["end"] for part in parts), "mmengine refuses an empty part"
    assert len(parts) == 1 or parts[0]["end"] == parts[1]["begin"]


@pytest.mark.parametrize("stage", ["align", "tune"])
def test_config_of_an_image_task(stage):
    task = ImageTask.model_validate(
        {
            "model": "m",
            "tower": "t",
            "stage": stage,
            "data": {"files": ["x"]},
            "optim": Optim(steps=4, accumulate=1, learning_rate=2e-4).model_dump(),
            "tower_lora": {"rank": 4, "alpha": 8, "targets": ["q_proj"]} if stage == "tune" else None,
            "rates": {"projector": 1e-3},
        }
    )
    config = config_of(task, "bfloat16", True)
    model = config["model"]
    assert model["freeze_llm"] is True and model["freeze_visual_encoder"] is True
    assert model["pretrained_pth"] == "/run's/start.pth"
    assert (model["llm_lora"] is None) == (model["visual_encoder_lora"] is None) == (stage == "align")
    assert stage == "align" or model["visual_encoder_lora"]["target_modules"] == ["q_proj"]
    assert config["train_dataloader"]["dataset"]["pad_image_to_square"] is True
    assert config["optim_wrapper"]["paramwise_cfg"]["custom_keys"] == {"projector.": {"lr_mult": 5.0}}


@given(OPTIM, COMPUTE, st.booleans())
def test_full_finetuning_has_fp32_weights_and_no_adapter(optim, compute, on_gpu):
    whole = {"model": "m", "data": {"files": ["x"]}, "optim": optim, "lora": None, "quant": {"bits": 16}}
    text = config_of(TextTask.model_validate(whole), compute, on_gpu)["model"]
    task = ImageTask.model_validate(whole | {"tower": "t", "whole_tower": True})
    image = config_of(task, compute, on_gpu)["model"]
    for model in (text, image):
        assert model["llm"]["torch_dtype"] == "torch.float32" and "quantization_config" not in model["llm"]
        assert not [key for key, value in model.items() if "lora" in key and value is not None]
    assert image["freeze_llm"] is False and image["freeze_visual_encoder"] is False
    frozen = config_of(task.model_copy(update={"whole_tower": False}), compute, on_gpu)
    assert frozen["model"]["freeze_visual_encoder"] is True
