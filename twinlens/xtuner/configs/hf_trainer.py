"""Convert an XTuner config for transformers' Trainer to a task's `optim` and `run`."""

from typing import Any

from twinlens.xtuner.configs.tree import ConfigTree, describe

ARGUMENTS = "training_args"
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")


def map_trainer_training(tree: ConfigTree, quantized: bool) -> dict[str, Any]:
    """`optim` and `run`; missing values have the defaults of TrainingArguments.

    Args:
        quantized: whether the base weights are quantized, because PEFT then turns gradient checkpointing on.
    """
    if (trainer := tree.short_name("trainer")) not in (None, "Trainer"):
        tree.note("trainer", f"{trainer}; training follows Trainer")
    return {"optim": _optim(tree, quantized), "run": _run(tree)}


def _optim(tree: ConfigTree, quantized: bool) -> dict[str, Any]:
    if (optimizer := tree.short_name(f"{ARGUMENTS}.optim") or ADAMW[0]).lower() not in ADAMW:
        tree.note(f"{ARGUMENTS}.optim", f"{optimizer}; AdamW is used")
    if tree.get(f"{ARGUMENTS}.fp16", False):
        tree.note(f"{ARGUMENTS}.fp16", "quant.compute decides: bf16 where the device supports it")
    if (clip := tree.number(f"{ARGUMENTS}.max_grad_norm", 1.0)) <= 0:
        tree.note(f"{ARGUMENTS}.max_grad_norm", "Trainer does not clip gradients; twinlens clips to a norm of 1")
        clip = 1.0
    epochs = tree.get(f"{ARGUMENTS}.num_train_epochs", 3)
    steps = tree.number(f"{ARGUMENTS}.max_steps", -1)
    return {
        "learning_rate": tree.number(f"{ARGUMENTS}.learning_rate", 5e-5),
        **({"steps": steps} if steps > 0 else {"epochs": epochs}),
        "micro_batch": tree.get(f"{ARGUMENTS}.per_device_train_batch_size", 8),
        "accumulate": tree.get(f"{ARGUMENTS}.gradient_accumulation_steps", 1),
        **_schedule(tree, steps),
        "weight_decay": tree.get(f"{ARGUMENTS}.weight_decay", 0.0),
        "betas": [tree.get(f"{ARGUMENTS}.adam_beta1", 0.9), tree.get(f"{ARGUMENTS}.adam_beta2", 0.999)],
        "clip": clip,
        "gradient_checkpointing": tree.get(f"{ARGUMENTS}.gradient_checkpointing", False) or quantized,
    }


def _schedule(tree: ConfigTree, steps: float) -> dict[str, Any]:
    """Warm-up and schedule; `steps` is 0 or less if the run is in epochs."""
    path = f"{ARGUMENTS}.lr_scheduler_type"
    scheduler = (tree.short_name(path) or "linear").lower()
    schedule = scheduler.removesuffix("_with_warmup")
    if schedule not in ("linear", "cosine", "constant"):
        tree.note(path, f"{scheduler}; cosine is used")
        schedule = "cosine"
    warmup_steps, warmup = tree.number(f"{ARGUMENTS}.warmup_steps", 0), tree.number(f"{ARGUMENTS}.warmup_ratio", 0)
    if scheduler == "constant":
        warmup = 0.0
    elif warmup_steps > 0 and steps > 0:
        warmup = round(warmup_steps / steps, 6)
    elif warmup_steps > 0:
        tree.note(f"{ARGUMENTS}.warmup_steps", f"{warmup_steps} steps in a run of epochs; optim.warmup is 0.03")
        warmup = 0.03
    return {"warmup": warmup, "schedule": schedule}


def _run(tree: ConfigTree) -> dict[str, Any]:
    run: dict[str, Any] = {"seed": tree.get(f"{ARGUMENTS}.seed", 42)}
    strategy = (tree.short_name(f"{ARGUMENTS}.save_strategy") or "steps").lower()
    every = tree.number(f"{ARGUMENTS}.save_steps", 500)
    if strategy == "steps" and every >= 1:
        run["save_every"] = every
    elif strategy != "no":
        key, value = ("save_steps", every) if strategy == "steps" else ("save_strategy", strategy)
        tree.note(f"{ARGUMENTS}.{key}", f"{describe(value)}; set run.save_every, in steps")
    if (keep := tree.number(f"{ARGUMENTS}.save_total_limit", 0)) > 0:
        run["keep"] = keep
    else:
        tree.note(f"{ARGUMENTS}.save_total_limit", "Trainer keeps all checkpoints; twinlens keeps run.keep of them")
    return run
