"""An XTuner config becomes the document of a task, and a line for each thing that does not carry over as it stands."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llm.internlm_names import LAYERS
from twinlens.xtuner.config_reader import Config, read_config
from twinlens.xtuner.config_tree import ConfigTree, shown
from twinlens.xtuner.mapping_data import image_data, picture_folder, template_of, text_data
from twinlens.xtuner.scope import settle_scope

HOOK = "custom_hooks.EvaluateChatHook"
# What stays without a counterpart, and why; a path without a sentence changes nothing of what is learned.
REST: dict[str, str | None] = {
    f"{HOOK}.evaluation_inputs": "XTuner samples answers to them; here evaluation.probes are asked and scored",
    f"{HOOK}.evaluation_images": "XTuner samples answers on it; a probe of evaluation.probes names its own picture",
    f"{HOOK}.system": "XTuner gives it to its samples alone, not in training; `system` here is for both",
    f"{HOOK}.type": None,
    f"{HOOK}.prompt_template*": None,
    f"{HOOK}.instruction": None,  # of XTuner 0.1: a piece of the template
    "custom_hooks.*.tokenizer.*": None,
    "custom_hooks.*.image_processor.*": None,
    "custom_hooks.DatasetInfoHook.*": None,
    "custom_hooks.ThroughputHook.*": None,
    "custom_hooks.VarlenAttnArgsToMessageHubHook.*": None,
    "train_dataloader.dataset*.tokenizer.*": None,
    "train_dataloader.dataset*.image_processor.*": None,
    "val_dataloader*": "scored while training there; here evaluation.probes are asked and scored",
    "val_*": None,
    "test_*": None,
    "train_dataloader.dataset*.remove_unused_columns": None,
    "train_dataloader.dataset*.shuffle_before_pack": None,
    "train_dataloader.dataset*.use_varlen_attn": None,
    "train_dataloader.dataset*.bot_name": None,
    "train_dataloader.num_workers": None,
    "train_dataloader.pin_memory": None,
    "train_dataloader.collate_fn.*": None,
    "train_dataloader.sampler.*": None,
    "train_dataloader.batch_sampler.*": None,
    "train_dataloader.persistent_workers": None,
    "model.use_varlen_attn": None,
    "model.llm*.trust_remote_code": None,
    "model.llm*.torch_dtype": None,
    "model.llm*.attn_implementation": None,
    "model.llm*.type": None,
    "model.llm.quantization_config.type": None,
    "model.llm.quantization_config.llm_int8_*": None,
    "model.llm.quantization_config.bnb_4bit_*": None,
    "model.visual_encoder.type": None,
    "model.*lora.task_type": None,
    "optim_wrapper.type": None,
    "optim_wrapper.loss_scale": None,
    "optim_wrapper.clip_grad.error_if_nonfinite": None,
    "param_scheduler*.begin": None,
    "param_scheduler*.end": None,
    "param_scheduler*.by_epoch": None,
    "param_scheduler*.start_factor": None,
    "param_scheduler*.convert_to_iter_based": None,
    "param_scheduler*.T_max": None,
    "train_cfg.type": None,
    "train_cfg.by_epoch": None,
    "train_cfg.val_interval": None,
    "default_hooks.checkpoint.type": None,
    "default_hooks.timer.*": None,
    "default_hooks.logger.*": None,
    "default_hooks.param_scheduler.*": None,
    "default_hooks.sampler_seed.*": None,
    "randomness.deterministic": None,
    "env_cfg.*": None,
    "log_level": None,
    "log_processor.*": None,
    "visualizer*": "name trackers in run.trackers",
    "resume": "`twinlens train --resume RUN` goes on with a run",
    "load_from": "training starts from the model as it is",
    "work_dir": "give --work-dir",
}


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a config comes to.

    Args:
        document: a task's tree, as a YAML file would hold it.
        differs: a line for each thing that does not carry over as it stands, by its key.
    """

    document: dict[str, Any]
    differs: tuple[str, ...]


def map_config(file: Path) -> Mapped:
    """Read a config file and map it.

    Raises:
        ConfigError: it cannot be read, or trains what twinlens does not; says what it is.
    """
    config = read_config(file)
    tree = ConfigTree(config)
    document = _text(tree) if settle_scope(tree) == "text" else _image(tree)
    return Mapped(document, (*tree.differs, *_rest(tree), *_not_run(config)))


def _text(tree: ConfigTree) -> dict[str, Any]:
    return {
        "model": _model(tree, "model.llm"),
        "template": template_of(tree),
        "quant": _quant(tree),
        "lora": _lora(tree, "model.lora"),
        "data": text_data(tree),
        **_training(tree),
    }


def _image(tree: ConfigTree) -> dict[str, Any]:
    tower = _model(tree, "model.visual_encoder")
    adapts = tree.has("model.llm_lora")
    document = {
        "stage": "tune" if adapts else "align",
        "model": _model(tree, "model.llm"),
        "template": template_of(tree),
        "tower": tower,
        "start": tree.text("model.pretrained_pth"),
        "quant": _quant(tree),
        "data": image_data(tree, tower),
        "pictures": {"folder": picture_folder(tree)},
        **_training(tree),
    }
    if adapts:
        document["lora"] = _lora(tree, "model.llm_lora")
    if tree.has("model.visual_encoder_lora"):
        document["tower_lora"] = _lora(tree, "model.visual_encoder_lora")
    return document


def _model(tree: ConfigTree, part: str) -> str:
    path = f"{part}.pretrained_model_name_or_path"
    name = tree.text(path)
    if not name:
        raise tree.fault(f"{path} is missing; write a model's folder or name")
    return name


def _quant(tree: ConfigTree) -> dict[str, Any]:
    path = "model.llm.quantization_config"
    four = tree.take(f"{path}.load_in_4bit", False) or tree.take("model.llm.load_in_4bit", False)
    eight = tree.take(f"{path}.load_in_8bit", False) or tree.take("model.llm.load_in_8bit", False)
    if four:
        if (kind := tree.take(f"{path}.bnb_4bit_quant_type", "nf4")) != "nf4":
            tree.differ(f"{path}.bnb_4bit_quant_type", f"{shown(kind)}; nf4 is used")
        return {"bits": 4}
    return {"bits": 8 if eight else 16}


def _lora(tree: ConfigTree, path: str) -> dict[str, Any]:
    if (kind := tree.kind(path)) != "LoraConfig":
        tree.differ(f"{path}.type", f"{kind}; a LoRA is trained")
    if (bias := tree.take(f"{path}.bias", "none")) != "none":
        tree.differ(f"{path}.bias", f"{shown(bias)}; biases are not trained")
    # PEFT's own defaults where the config says nothing.
    lora = {
        "rank": tree.take(f"{path}.r", 8),
        "alpha": tree.take(f"{path}.lora_alpha", 8),
        "dropout": tree.take(f"{path}.lora_dropout", 0.0),
    }
    targets = tree.take(f"{path}.target_modules")
    if isinstance(targets, list | tuple):
        split = (name for target in targets for name in LAYERS.get(str(target), (str(target),)))
        lora["targets"] = list(dict.fromkeys(split))
    elif targets not in (None, "all-linear"):
        tree.differ(f"{path}.target_modules", f"{shown(targets)} is a pattern; every linear layer is adapted")
    return lora


def _training(tree: ConfigTree) -> dict[str, Any]:
    """`optim`, `evaluation` and `run`; what XTuner counts in iterations is counted in optimiser steps."""
    accumulate = _accumulate(tree)
    evaluation: dict[str, Any] = {"every": _steps(tree, f"{HOOK}.every_n_iters", accumulate)}
    if (longest := tree.take(f"{HOOK}.max_new_tokens")) is not None:
        evaluation["max_new_tokens"] = longest
    return {"optim": _optim(tree, accumulate), "evaluation": evaluation, "run": _run(tree, accumulate)}


def _accumulate(tree: ConfigTree) -> int:
    """Micro-batches of a step; those that sequence parallelism adds, to make up for devices, are taken out."""
    devices = int(tree.number("sequence_parallel_size", 1))
    counts = int(tree.number("optim_wrapper.accumulative_counts", 1))
    if devices > 1:
        tree.differ("sequence_parallel_size", f"{devices}; every device takes whole sequences, so a step takes fewer")
    return max(1, counts // max(1, devices))


def _optim(tree: ConfigTree, accumulate: int) -> dict[str, Any]:
    path = "optim_wrapper.optimizer"
    if (kind := tree.kind(path)) != "AdamW":
        tree.differ(f"{path}.type", f"{kind}; AdamW is used")
    if tree.take("optim_wrapper.dtype") == "float16":
        tree.differ("optim_wrapper.dtype", "float16; quant.compute decides: bf16 where the device has units for it")
    epochs = tree.take("train_cfg.max_epochs")
    betas = tree.take(f"{path}.betas", (0.9, 0.999))
    length = {"epochs": epochs} if epochs is not None else {"steps": _steps(tree, "train_cfg.max_iters", accumulate)}
    optim = {
        "learning_rate": tree.number(f"{path}.lr", 1e-3),
        **length,
        "micro_batch": tree.take("train_dataloader.batch_size", 1),
        "accumulate": accumulate,
        **_schedule(tree),
        "weight_decay": tree.take(f"{path}.weight_decay", 0.01),
        "betas": list(betas) if isinstance(betas, tuple) else betas,
        "gradient_checkpointing": tree.take("model.use_activation_checkpointing", True),
    }
    if tree.has("optim_wrapper.clip_grad"):
        optim["clip"] = tree.take("optim_wrapper.clip_grad.max_norm", 1.0)
    else:
        tree.differ("optim_wrapper.clip_grad", "gradients are not clipped there; here to a norm of 1")
    return optim


def _schedule(tree: ConfigTree) -> dict[str, Any]:
    """Warm-up and schedule out of mmengine's list of parts; XTuner's configs have a rise and a fall."""
    path = "param_scheduler"
    epochs = tree.take("train_cfg.max_epochs")
    counted = "train_cfg.max_epochs" if epochs is not None else "train_cfg.max_iters"
    if (whole := tree.number(counted, 1)) <= 0:
        raise tree.fault(f"{counted} is {whole}; write how long to train")
    warmup, schedule = 0.0, "constant"
    for part in [path] if tree.has(f"{path}.type") else [f"{path}.{name}" for name in tree.below(path)]:
        kind = tree.kind(part)
        rises = kind == "LinearLR" and tree.number(f"{part}.end_factor", 1) >= 1
        if rises and epochs is not None and not tree.take(f"{part}.by_epoch", True):
            tree.differ(part, "a warm-up counted in iterations of a run counted in epochs; optim.warmup is 0.03")
            warmup = 0.03
        elif rises:
            warmup = round(tree.number(f"{part}.end", 0) / whole, 6)
        elif kind in ("CosineAnnealingLR", "LinearLR"):
            schedule = "cosine" if kind == "CosineAnnealingLR" else "linear"
            if tree.number(f"{part}.eta_min", 0):
                tree.differ(f"{part}.eta_min", "the rate falls to 0 here")
        elif kind != "ConstantLR":
            schedule = "cosine"
            tree.differ(part, "no such schedule here; cosine is used")
    return {"warmup": warmup, "schedule": schedule}


def _run(tree: ConfigTree, accumulate: int) -> dict[str, Any]:
    path = "default_hooks.checkpoint"
    run: dict[str, Any] = {}
    if tree.take(f"{path}.by_epoch", True):
        tree.differ(f"{path}.interval", f"{tree.take(f'{path}.interval', -1)} in epochs; set run.save_every in steps")
    else:
        run["save_every"] = _steps(tree, f"{path}.interval", accumulate)
    keep = int(tree.number(f"{path}.max_keep_ckpts", -1))
    if keep > 0:
        run["keep"] = keep
    else:
        tree.differ(f"{path}.max_keep_ckpts", "keeps every checkpoint; set run.keep for more than the last two")
    if (seed := tree.take("randomness.seed")) is not None:
        run["seed"] = seed
    return run


def _steps(tree: ConfigTree, path: str, accumulate: int) -> int:
    """Optimiser steps for iterations of one micro-batch each; 0 where there are none."""
    iterations = int(tree.number(path, 0))
    if iterations <= 0:
        return 0
    steps = max(1, round(iterations / accumulate))
    if accumulate > 1:
        tree.differ(path, f"{iterations} iterations of one micro-batch are {steps} steps of {accumulate}")
    return steps


def _rest(tree: ConfigTree) -> list[str]:
    """A line for what nobody asked for, unless it changes nothing."""
    lines: dict[str, None] = {}
    for path, value in tree.left():
        pattern = next((pattern for pattern in REST if fnmatchcase(path, pattern)), None)
        if pattern is None:
            lines[f"{path}: {shown(value)}; has no counterpart here"] = None
        elif (sentence := REST[pattern]) is not None and value not in ("", False):
            lines[f"{pattern.rstrip('*')}: {sentence}"] = None
    return list(lines)


def _not_run(config: Config) -> list[str]:
    return [f"{each.where}: `{each.source}` is not run" for each in config.skipped]
