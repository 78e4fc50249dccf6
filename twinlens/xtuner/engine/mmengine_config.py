"""A run as the mmengine config that asks XTuner for it, in the manner of the configs that it ships."""

from dataclasses import dataclass
from pathlib import Path

from tuning.settings import Lora, Optim, Task
from tuning.training.lr_schedule import warmup_steps
from vlm.settings import ImageTask

IMPORTS = """\
# A run of twinlens, for XTuner 0.2.0.
import torch
from datasets import load_from_disk
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, ConstantLR, CosineAnnealingLR, LinearLR, OptimWrapper
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CLIPImageProcessor, CLIPVisionModel
from xtuner.dataset import LLaVADataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel, SupervisedFinetune

"""
HOOKS = """\
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, ignore_last=False, interval={accumulate}),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(
        type=CheckpointHook, by_epoch=False, interval={iters}, save_optimizer=False, save_param_scheduler=False
    ),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
log_processor = dict(
    by_epoch=False,
    window_size={accumulate},
    custom_cfg=[dict(data_src="grad_norm", method_name="mean", window_size=1)],
)
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
randomness = dict(seed={seed}, deterministic=False)
visualizer = None
log_level = "INFO"
load_from = None
resume = False
"""


@dataclass(frozen=True, slots=True)
class InputPaths:
    """Where the inputs of a run lie, and how much of them there is.

    Args:
        model: the language model as transformers 4.48 reads it; `tower` likewise, of an image run.
        rows: the encoded rows.
        start: the weights that the projector begins with, of an image run.
        iters: micro-batches in all.
    """

    model: Path
    rows: Path
    tower: Path | None
    start: Path | None
    iters: int


def config_text(task: Task, place: InputPaths, compute: str, on_gpu: bool) -> str:
    """The config.

    Args:
        compute: bfloat16, float16 or float32, as resolved for this machine.
    """
    accumulate = task.optim.accumulate
    parts = [
        _image_model(task, place, compute, on_gpu)
        if isinstance(task, ImageTask)
        else _text_model(task, place, compute, on_gpu),
        _dataloader(task, place),
        _optimizer(task, compute, on_gpu),
        _schedule(task.optim, place.iters),
        f"train_cfg = dict(type=TrainLoop, max_iters={place.iters})\n",
        HOOKS.format(accumulate=accumulate, iters=place.iters, seed=task.run.seed),
    ]
    return IMPORTS + "\n".join(parts)


def _language(task: Task, place: InputPaths, compute: str, on_gpu: bool) -> str:
    # Without autocast, which mmengine has on a GPU alone, everything that is not quantized must be fp32; and so are
    # weights that are trained, which in 16 bits would lose the small steps.
    dtype = compute if on_gpu and not task.full_finetuning else "float32"
    lines = [
        "dict(",
        "        type=AutoModelForCausalLM.from_pretrained,",
        f"        pretrained_model_name_or_path={str(place.model)!r},",
        "        trust_remote_code=False,",
        f"        torch_dtype=torch.{dtype},",
    ]
    if task.quant.bits == 8:
        lines.append("        quantization_config=dict(type=BitsAndBytesConfig, load_in_8bit=True),")
    if task.quant.bits == 4:
        lines += [
            "        quantization_config=dict(",
            "            type=BitsAndBytesConfig,",
            "            load_in_4bit=True,",
            f"            bnb_4bit_compute_dtype=torch.{compute},",
            "            bnb_4bit_use_double_quant=True,",
            '            bnb_4bit_quant_type="nf4",',
            "        ),",
        ]
    return "\n".join([*lines, "    )"])


def _text_model(task: Task, place: InputPaths, compute: str, on_gpu: bool) -> str:
    return (
        "model = dict(\n"
        "    type=SupervisedFinetune,\n"
        "    use_varlen_attn=False,\n"
        f"    use_activation_checkpointing={task.optim.gradient_checkpointing},\n"
        f"    llm={_language(task, place, compute, on_gpu)},\n"
        f"{_lora('lora', task.lora, 'CAUSAL_LM')})\n"
    )


def _image_model(task: ImageTask, place: InputPaths, compute: str, on_gpu: bool) -> str:
    lora = task.lora if task.stage == "tune" else None
    return (
        "model = dict(\n"
        "    type=LLaVAModel,\n"
        f"    freeze_llm={not task.full_finetuning},\n"
        f"    freeze_visual_encoder={not task.whole_tower},\n"
        f"    use_activation_checkpointing={task.optim.gradient_checkpointing},\n"
        f"    pretrained_pth={str(place.start)!r},\n"
        f"    llm={_language(task, place, compute, on_gpu)},\n"
        "    visual_encoder=dict(\n"
        f"        type=CLIPVisionModel.from_pretrained, pretrained_model_name_or_path={str(place.tower)!r}\n"
        "    ),\n"
        f"{_lora('llm_lora', lora, 'CAUSAL_LM')}{_lora('visual_encoder_lora', task.tower_lora, None)})\n"
    )


def _lora(key: str, lora: Lora | None, task_type: str | None) -> str:
    if lora is None:
        return ""
    targets = None if lora.targets == "all-linear" else list(lora.targets)
    return (
        f"    {key}=dict(\n        type=LoraConfig, r={lora.rank}, lora_alpha={lora.alpha}, "
        f'lora_dropout={lora.dropout}, bias="none",\n'
        f"        task_type={task_type!r}, target_modules={targets!r},\n    ),\n"
    )


def _dataloader(task: Task, place: InputPaths) -> str:
    rows = f"dict(type=load_from_disk, dataset_path={str(place.rows)!r})"
    if isinstance(task, ImageTask):
        rows = (
            "dict(\n        type=LLaVADataset,\n"
            '        image_folder="/",\n'
            "        image_processor=dict(\n"
            f"            type=CLIPImageProcessor.from_pretrained, pretrained_model_name_or_path={str(place.tower)!r}\n"
            "        ),\n"
            f"        offline_processed_text_folder={str(place.rows)!r},\n"
            "        pad_image_to_square=True,\n    )"
        )
    return (
        "train_dataloader = dict(\n"
        f"    batch_size={task.optim.micro_batch},\n"
        "    num_workers=0,\n"
        f"    dataset={rows},\n"
        "    sampler=dict(type=DefaultSampler, shuffle=False),\n"
        "    collate_fn=dict(type=default_collate_fn),\n"
        ")\n"
    )


def _optimizer(task: Task, compute: str, on_gpu: bool) -> str:
    optim = task.optim
    mixed = on_gpu and compute != "float32"
    scale = "dynamic" if compute == "float16" else 1.0
    amp = f'    loss_scale={scale!r},\n    dtype="{compute}",\n' if mixed else ""
    return (
        "optim_wrapper = dict(\n"
        f"    type={'AmpOptimWrapper' if mixed else 'OptimWrapper'},\n"
        f"    optimizer=dict(\n        type=AdamW, lr={optim.learning_rate}, betas={tuple(optim.betas)}, "
        f"weight_decay={optim.weight_decay}\n    ),\n"
        f"    clip_grad=dict(max_norm={optim.clip}, error_if_nonfinite=False),\n"
        f"    accumulative_counts={optim.accumulate},\n"
        f"{amp}{_rates(task)})\n"
    )


def _rates(task: Task) -> str:
    """Learning rates of their own, which mmengine takes as multiples of the one."""
    if not isinstance(task, ImageTask):
        return ""
    own = {"projector.": task.rates.projector, "visual_encoder.": task.rates.tower}
    keys = {name: {"lr_mult": rate / task.optim.learning_rate} for name, rate in own.items() if rate is not None}
    return f"    paramwise_cfg=dict(custom_keys={keys!r}),\n" if keys else ""


def _schedule(optim: Optim, iters: int) -> str:
    steps = -(-iters // optim.accumulate)
    rising = warmup_steps(optim.warmup, steps) * optim.accumulate
    parts = [f"dict(type=LinearLR, start_factor=1e-5, by_epoch=False, begin=0, end={rising})"] if rising > 1 else []
    after = f"by_epoch=False, begin={rising}, end={iters}"
    parts.append(
        {
            "cosine": f"dict(type=CosineAnnealingLR, eta_min=0.0, {after})",
            "linear": f"dict(type=LinearLR, start_factor=1.0, end_factor=0.0, {after})",
            "constant": f"dict(type=ConstantLR, factor=1.0, {after})",
        }[optim.schedule]
    )
    return "param_scheduler = [\n" + "".join(f"    {part},\n" for part in parts) + "]\n"
