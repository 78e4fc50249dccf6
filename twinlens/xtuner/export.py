"""Trained parts in XTuner's own folders, as its `chat` reads them: fused layers where the base is InternLM2.

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
from twinlens.tasks import AnyTask
from vlm.checkpoints.initialize import encoder_name
from vlm.checkpoints.reading import LlavaParts, read_parts
from vlm.finetuned import check_finetuned
from vlm.settings import ImageTask
from vlm.towers.registry import tower_facts

_LAYERS = {"linear_1": "model.0", "linear_2": "model.2"}


def read_run(run: RunDir, task: AnyTask) -> LlavaParts:
    """What a run of ours learned, its language adapter on the layers that XTuner's base has.

    Raises:
        ModelError: the run has not finished, or XTuner does not know its tower.
        ConfigError: it is of the text path and trained a whole model, which needs no other folder.
    """
    if task.full_finetuning and not isinstance(task, ImageTask):
        finetuning_of(task).check_finetuned(run)
        raise ConfigError(f"{run.path}: trained the whole model, so give XTuner's chat {run.model} as it is.")
    if isinstance(task, ImageTask):
        check_finetuned(run, task)
        if tower_facts(task.tower).kind != "clip":
            raise ModelError(f"{run.path}: its tower {task.tower} is no CLIP of transformers, and XTuner has no other.")
    parts = read_parts(str(run.adapter))
    if parts.language is None or model_type(model_folder(task.versioned_model, weights=False)) != "internlm2":
        return parts
    return replace(parts, language=fuse_adapter(parts.language, load_model_config(task.versioned_model)))


def write_xtuner(parts: LlavaParts, task: AnyTask, destination: Path, fp32: bool, safe: bool) -> None:
    """Write XTuner's folder of a text adapter, or those of a LLaVA: `llm_adapter`, `visual_encoder_adapter`,
    `projector`.

    Args:
        parts: names as XTuner's base has them.
        fp32: otherwise the language model's adapter is in fp16, as XTuner has it; the others are in fp32 either way.
        safe: safetensors in place of pickles.

    Raises:
        ConfigError: the destination is there already.
        DeviceError: it cannot be written.
    """
    check_destination(destination, 0)
    image = isinstance(task, ImageTask)
    with atomic_folder(destination) as unfinished:
        if parts.language is not None and task.lora is not None:
            folder = unfinished / "llm_adapter" if image else unfinished
            half = {name: value.float() if fp32 else value.half() for name, value in parts.language.items()}
            alpha = parts.language_alpha or task.lora.alpha
            config = _config(half, task.lora.rank, alpha, task.lora.dropout, task.model) | {"task_type": "CAUSAL_LM"}
            _write(half, config, folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS if safe else ADAPTER_WEIGHTS_PICKLED))
        if not isinstance(task, ImageTask):
            return
        if parts.tower is not None and (lora := task.tower_lora) is not None:
            tower = {
                f"{PEFT_PREFIX}vision_model.{encoder_name(name)}": value.float() for name, value in parts.tower.items()
            }
            config = _config(tower, lora.rank, parts.tower_alpha or lora.alpha, lora.dropout, task.tower)
            # Not the layers behind the features, which runs of ours leave without an adapter.
            config["layers_to_transform"] = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in tower})
            _write(
                tower,
                config,
                unfinished / "visual_encoder_adapter",
                (ADAPTER_CONFIG, ADAPTER_WEIGHTS if safe else ADAPTER_WEIGHTS_PICKLED),
            )
        names = ("config.json", "model.safetensors" if safe else "pytorch_model.bin")
        projector = {_theirs(name): value.float() for name, value in parts.projector.items()}
        _write(projector, _projector_config(parts.projector), unfinished / "projector", names)


def _theirs(name: str) -> str:
    layer, part = name.split(".")
    return f"{_LAYERS[layer]}.{part}"


def _config(state: Mapping[str, Tensor], rank: int, alpha: int, dropout: float, base: str) -> dict[str, Any]:
    """No more than what PEFT 0.4 knows, for that refuses what it does not; patterns only where ranks differ."""
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": target_names(state),
        "task_type": None,
    }
    ranks = {target_names([name])[0]: len(value) for name, value in state.items() if ".lora_A." in name}
    others = {layer: theirs for layer, theirs in ranks.items() if theirs != rank}
    if others:
        config["rank_pattern"] = others
        config["alpha_pattern"] = {layer: alpha * theirs // rank for layer, theirs in others.items()}
    return config


def _projector_config(projector: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of XTuner's own class, which it has registered: no auto_map, which would make it look for code beside."""
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


def _write(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, names: tuple[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    described, weights = names
    (folder / described).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    plain = {name: value.detach().contiguous() for name, value in sorted(state.items())}
    if weights.endswith(".bin"):
        write_pth(plain, folder / weights)
    else:
        save_file(plain, folder / weights, metadata={"format": "pt"})
