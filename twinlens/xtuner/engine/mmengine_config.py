"""Write a task as an mmengine config for XTuner."""

from pathlib import Path
from pprint import pformat
from typing import Any

from tuning.settings import Lora, Optim, Task
from tuning.training.lr_schedule import warmup_steps
from vlm.settings import ImageTask

# Inputs in the folder of the config; an image run has a tower and initial projector weights too.
MODEL, ROWS, TOWER, INITIAL_PROJECTOR = "model", "rows", "tower", "start.pth"
IMPORTS = """\
# A run of twinlens, for XTuner 0.2.0.
import torch
from datasets import load_from_disk
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import AmpOptimWrapper, ConstantLR, CosineAnnealingLR, LinearLR, OptimWrapper
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CLIPImageProcessor, CLIPVisionModel
from xtuner.dataset import LLaVADataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel, SupervisedFinetune

"""


class _Name(str):
    """An imported name in the config, printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def config_text(task: Task, folder: Path, iters: int, compute: str, on_gpu: bool) -> str:
    """The Python text of the config.

    Args:
        folder: of the config and its inputs.
        iters: number of micro-batches in the run.
        compute: bfloat16, float16 or float32.
    """
    accumulate = task.optim.accumulate
    config: dict[str, Any] = {
        "model": _model(task, folder, compute, on_gpu),
        "train_dataloader": {
            "batch_size": task.optim.micro_batch,
            "num_workers": 0,
            "dataset": _dataset(task, folder),
            "sampler": _object("DefaultSampler", shuffle=False),
            "collate_fn": _object("default_collate_fn"),
        },
        "optim_wrapper": _optim_wrapper(task, compute, mixed=on_gpu and compute != "float32"),
        "param_scheduler": _schedulers(task.optim, iters),
        "train_cfg": _object("TrainLoop", max_iters=iters),
        "default_hooks": {
            "logger": _object("LoggerHook", log_metric_by_epoch=False, ignore_last=False, interval=accumulate),
            "checkpoint": _object(
                "CheckpointHook", by_epoch=False, interval=iters, save_optimizer=False, save_param_scheduler=False
            ),
        },
        "log_processor": {
            "by_epoch": False,
            "window_size": accumulate,
            "custom_cfg": [{"data_src": "grad_norm", "method_name": "mean", "window_size": 1}],
        },
        "randomness": {"seed": task.run.seed},
    }
    lines = (f"{key} = {pformat(value, width=100, sort_dicts=False)}\n" for key, value in config.items())
    return IMPORTS + "".join(lines)


def _object(name: str, **arguments: Any) -> dict[str, Any]:
    """What mmengine builds by calling an imported name with these arguments."""
    return {"type": _Name(name), **arguments}


def _pretrained(name: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    return _object(f"{name}.from_pretrained", pretrained_model_name_or_path=str(folder), **arguments)


def _model(task: Task, folder: Path, compute: str, on_gpu: bool) -> dict[str, Any]:
    # mmengine has autocast only on a GPU: on a CPU, all weights that are not quantized must be fp32.
    # Trained weights must be fp32 too: in 16 bits, small updates are lost.
    dtype = compute if on_gpu and not task.full_finetuning else "float32"
    language = _pretrained(
        "AutoModelForCausalLM", folder / MODEL, trust_remote_code=False, torch_dtype=_Name(f"torch.{dtype}")
    )
    if task.quant.bits == 8:
        language["quantization_config"] = _object("BitsAndBytesConfig", load_in_8bit=True)
    if task.quant.bits == 4:
        language["quantization_config"] = _object(
            "BitsAndBytesConfig",
            load_in_4bit=True,
            bnb_4bit_compute_dtype=_Name(f"torch.{compute}"),
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        )
    common = {"llm": language, "use_activation_checkpointing": task.optim.gradient_checkpointing}
    if not isinstance(task, ImageTask):
        return _object("SupervisedFinetune", **common, lora=_lora(task.lora, "CAUSAL_LM"))
    return _object(
        "LLaVAModel",
        **common,
        freeze_llm=not task.full_finetuning,
        freeze_visual_encoder=not task.whole_tower,
        pretrained_pth=str(folder / INITIAL_PROJECTOR),
        visual_encoder=_pretrained("CLIPVisionModel", folder / TOWER),
        llm_lora=_lora(task.lora if task.stage == "tune" else None, "CAUSAL_LM"),
        visual_encoder_lora=_lora(task.tower_lora, None),
    )


def _lora(lora: Lora | None, task_type: str | None) -> dict[str, Any] | None:
    if lora is None:
        return None
    return _object(
        "LoraConfig",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        task_type=task_type,
        target_modules=None if lora.targets == "all-linear" else list(lora.targets),
    )


def _dataset(task: Task, folder: Path) -> dict[str, Any]:
    rows = str(folder / ROWS)
    if not isinstance(task, ImageTask):
        return _object("load_from_disk", dataset_path=rows)
    return _object(
        "LLaVADataset",
        image_folder="/",
        image_processor=_pretrained("CLIPImageProcessor", folder / TOWER),
        offline_processed_text_folder=rows,
        pad_image_to_square=True,
    )


def _optim_wrapper(task: Task, compute: str, mixed: bool) -> dict[str, Any]:
    optim = task.optim
    wrapper = _object(
        "AmpOptimWrapper" if mixed else "OptimWrapper",
        optimizer=_object("AdamW", lr=optim.learning_rate, betas=tuple(optim.betas), weight_decay=optim.weight_decay),
        clip_grad={"max_norm": optim.clip},
        accumulative_counts=optim.accumulate,
    )
    if mixed:
        wrapper |= {"loss_scale": "dynamic" if compute == "float16" else 1.0, "dtype": compute}
    if isinstance(task, ImageTask):
        rates = {"projector.": task.rates.projector, "visual_encoder.": task.rates.tower}
        factors = {name: {"lr_mult": rate / optim.learning_rate} for name, rate in rates.items() if rate is not None}
        wrapper["paramwise_cfg"] = {"custom_keys": factors} if factors else None
    return wrapper


def _schedulers(optim: Optim, iters: int) -> list[dict[str, Any]]:
    warmup = warmup_steps(optim.warmup, -(-iters // optim.accumulate)) * optim.accumulate
    name, values = {
        "cosine": ("CosineAnnealingLR", {"eta_min": 0.0}),
        "linear": ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0}),
        "constant": ("ConstantLR", {"factor": 1.0}),
    }[optim.schedule]
    schedulers = [_object(name, **values, by_epoch=False, begin=warmup, end=iters)]
    if warmup > 1:
        schedulers.insert(0, _object("LinearLR", start_factor=1e-5, by_epoch=False, begin=0, end=warmup))
    return schedulers
