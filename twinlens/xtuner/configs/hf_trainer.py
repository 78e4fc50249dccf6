"""How long and how a config for transformers' Trainer trains, as a task's `optim` and `run`."""

from typing import Any

from twinlens.xtuner.configs.tree import ConfigTree, shown

ARGUMENTS = "training_args"
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")


def trainer_training(tree: ConfigTree, quantized: bool) -> dict[str, Any]:
    """`optim` and `run`; what is left out has TrainingArguments' own defaults, and steps are the optimizer's already.

    Args:
        quantized: whether an adapter is trained on quantized weights, for which PEFT turns checkpointing on.
    """
    if (kind := tree.name("trainer")) not in (None, "Trainer"):
        tree.differ("trainer", f"{kind}; what Trainer does is done")
    return {"optim": _optim(tree, quantized), "run": _run(tree)}


def _optim(tree: ConfigTree, quantized: bool) -> dict[str, Any]:
    if (kind := tree.name(f"{ARGUMENTS}.optim") or ADAMW[0]).lower() not in ADAMW:
        tree.differ(f"{ARGUMENTS}.optim", f"{kind}; AdamW is used")
    if tree.take(f"{ARGUMENTS}.fp16", False):
        tree.differ(f"{ARGUMENTS}.fp16", "quant.compute decides: bf16 where the device has units for it")
    if (clip := tree.number(f"{ARGUMENTS}.max_grad_norm", 1.0)) <= 0:
        tree.differ(f"{ARGUMENTS}.max_grad_norm", "gradients are not clipped there; here to a norm of 1")
        clip = 1.0
    steps, epochs = tree.take(f"{ARGUMENTS}.max_steps", -1), tree.take(f"{ARGUMENTS}.num_train_epochs", 3)
    counted = tree.number(f"{ARGUMENTS}.max_steps", -1) > 0
    return {
        "learning_rate": tree.number(f"{ARGUMENTS}.learning_rate", 5e-5),
        **({"steps": steps} if counted else {"epochs": epochs}),
        "micro_batch": tree.take(f"{ARGUMENTS}.per_device_train_batch_size", 8),
        "accumulate": tree.take(f"{ARGUMENTS}.gradient_accumulation_steps", 1),
        **_schedule(tree, steps if counted else None),
        "weight_decay": tree.take(f"{ARGUMENTS}.weight_decay", 0.0),
        "betas": [tree.take(f"{ARGUMENTS}.adam_beta1", 0.9), tree.take(f"{ARGUMENTS}.adam_beta2", 0.999)],
        "clip": clip,
        "gradient_checkpointing": tree.take(f"{ARGUMENTS}.gradient_checkpointing", False) or quantized,
    }


def _schedule(tree: ConfigTree, steps: float | None) -> dict[str, Any]:
    path = f"{ARGUMENTS}.lr_scheduler_type"
    kind = (tree.name(path) or "linear").lower()
    schedule = kind.removesuffix("_with_warmup")
    if schedule not in ("linear", "cosine", "constant"):
        tree.differ(path, f"{kind}: no such schedule here; cosine is used")
        schedule = "cosine"
    rise, warmup = tree.number(f"{ARGUMENTS}.warmup_steps", 0), tree.number(f"{ARGUMENTS}.warmup_ratio", 0)
    if kind == "constant":
        warmup = 0.0
    elif rise > 0 and steps is not None:
        warmup = round(rise / steps, 6)
    elif rise > 0:
        tree.differ(f"{ARGUMENTS}.warmup_steps", f"{rise} steps of a run counted in epochs; optim.warmup is 0.03")
        warmup = 0.03
    return {"warmup": warmup, "schedule": schedule}


def _run(tree: ConfigTree) -> dict[str, Any]:
    run: dict[str, Any] = {"seed": tree.take(f"{ARGUMENTS}.seed", 42)}
    strategy = (tree.name(f"{ARGUMENTS}.save_strategy") or "steps").lower()
    every = tree.number(f"{ARGUMENTS}.save_steps", 500)
    if strategy == "steps" and every >= 1:
        run["save_every"] = every
    elif strategy != "no":
        place = "save_steps" if strategy == "steps" else "save_strategy"
        given = every if strategy == "steps" else strategy
        tree.differ(f"{ARGUMENTS}.{place}", f"{shown(given)}; set run.save_every in steps")
    if (keep := tree.number(f"{ARGUMENTS}.save_total_limit", 0)) > 0:
        run["keep"] = keep
    else:
        tree.differ(f"{ARGUMENTS}.save_total_limit", "keeps every checkpoint; set run.keep for more than the last two")
    return run
