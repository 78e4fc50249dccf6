"""Export for XTuner: write trained weights as folders that `xtuner chat` loads.

Shapes: V width of the tower, D width of the language model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from llm.checkpoints.config_json import model_type
from llm.export.saving import check_destination
from llm.finetuned import finetuning_of
from llm.internlm.adapter import fuse_adapter
from llm.loading import load_model_config, model_folder
from tuning.atomic import atomic_folder
from tuning.errors import ConfigError, ModelError
from tuning.modules.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_PICKLED, PEFT_PREFIX, target_names
from tuning.modules.pth import write_pth
from tuning.run_dir import RunDir
from tuning.settings import Lora
from twinlens.tasks import AnyTask
from vlm.checkpoints.initialize import encoder_name
from vlm.checkpoints.reading import LlavaParts, read_parts
from vlm.finetuned import check_finetuned
from vlm.settings import ImageTask
from vlm.towers.registry import tower_facts


def read_run(run: RunDir, task: AnyTask) -> LlavaParts:
    """The trained weights of a run; on an InternLM2 base the language adapter is on its fused layers.

    Raises:
        ModelError: the run has not finished, or XTuner does not support its tower.
        ConfigError: the run trained a full text model, which needs no conversion.
    """
    if task.full_finetuning and not isinstance(task, ImageTask):
        finetuning_of(task).check_finetuned(run)
        raise ConfigError(f"{run.path}: trained the full model; give {run.model} to XTuner's chat.")
    if isinstance(task, ImageTask):
        check_finetuned(run, task)
        if tower_facts(task.tower).kind != "clip":
            raise ModelError(f"{run.path}: its tower {task.tower} is not a CLIP of transformers; XTuner needs one.")
    parts = read_parts(str(run.adapter))
    if parts.language is None or model_type(model_folder(task.versioned_model, weights=False)) != "internlm2":
        return parts
    return replace(parts, language=fuse_adapter(parts.language, load_model_config(task.versioned_model)))


def write_xtuner(parts: LlavaParts, task: AnyTask, destination: Path, fp32: bool, safe: bool) -> None:
    """Write the folder of a text adapter, or for a LLaVA `llm_adapter`, `visual_encoder_adapter` and `projector`.

    Args:
        parts: under the weight names of XTuner's base model.
        fp32: write the adapter of the language model in fp32; the default is fp16. Other parts are always fp32.
        safe: write safetensors files; the default is pickle files.

    Raises:
        ConfigError: the destination exists.
        DeviceError: it cannot be written.
    """
    check_destination(destination, 0)
    adapter_files = (ADAPTER_CONFIG, ADAPTER_WEIGHTS if safe else ADAPTER_WEIGHTS_PICKLED)
    with atomic_folder(destination) as unfinished:
        if parts.language is not None and task.lora is not None:
            folder = unfinished / "llm_adapter" if isinstance(task, ImageTask) else unfinished
            language = {name: value.float() if fp32 else value.half() for name, value in parts.language.items()}
            config = _adapter_config(language, task.lora, task.model) | {"task_type": "CAUSAL_LM"}
            _write(language, config, folder, adapter_files)
        if not isinstance(task, ImageTask):
            return
        if parts.tower is not None and task.tower_lora is not None:
            tower = {
                f"{PEFT_PREFIX}vision_model.{encoder_name(name)}": value.float() for name, value in parts.tower.items()
            }
            config = _adapter_config(tower, task.tower_lora, task.tower)
            # A run of twinlens has no adapter on the tower's last layer, which the features do not pass.
            config["layers_to_transform"] = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in tower})
            _write(tower, config, unfinished / "visual_encoder_adapter", adapter_files)
        projector = {xtuner_projector_name(name): value.float() for name, value in parts.projector.items()}
        files = ("config.json", "model.safetensors" if safe else "pytorch_model.bin")
        _write(projector, _projector_config(parts.projector), unfinished / "projector", files)


def xtuner_projector_name(name: str) -> str:
    """XTuner's name of a projector weight, such as `model.0.weight` for `linear_1.weight`."""
    return name.replace("linear_1", "model.0").replace("linear_2", "model.2")


def _adapter_config(state: Mapping[str, Tensor], lora: Lora, base: str) -> dict[str, Any]:
    """Only the keys that PEFT 0.4 knows, because it refuses others; patterns only where ranks differ."""
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": target_names(state),
        "task_type": None,
    }
    ranks = {target_names([name])[0]: len(value) for name, value in state.items() if ".lora_A." in name}
    if pattern := {layer: rank for layer, rank in ranks.items() if rank != lora.rank}:
        config["rank_pattern"] = pattern
        config["alpha_pattern"] = {layer: lora.alpha * rank // lora.rank for layer, rank in pattern.items()}
    return config


def _projector_config(projector: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of XTuner's registered class; without `auto_map`, which makes transformers look for code in the folder."""
    hidden, width = projector["linear_1.weight"].shape
    return {
        "architectures": ["ProjectorModel"],
        "bias": True,
        "depth": 2,
        "hidden_act": "gelu",
        "llm_hidden_size": hidden,
        "model_type": "projector",
        "torch_dtype": "float32",
        "visual_hidden_size": width,
    }


def _write(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, files: tuple[str, str]) -> None:
    """Write a config and weights; `files` are their names."""
    folder.mkdir(exist_ok=True)
    config_file, weights_file = (folder / name for name in files)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: value.detach().contiguous() for name, value in sorted(state.items())}
    if weights_file.suffix == ".bin":
        write_pth(weights, weights_file)
    else:
        save_file(weights, weights_file, metadata={"format": "pt"})
