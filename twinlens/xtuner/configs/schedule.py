"""Convert the training part of an mmengine config to `optim`, `evaluation` and `run`."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from typing import Any

from twinlens.xtuner.configs.tree import CHAT_HOOK, ConfigTree


def map_training(tree: ConfigTree) -> dict[str, Any]:
    """`optim`, `evaluation` and `run`. XTuner counts iterations (micro-batches); a task counts optimizer steps."""
    accumulate = _accumulate(tree)
    evaluation: dict[str, Any] = {"every": _steps(tree, f"{CHAT_HOOK}.every_n_iters", accumulate)}
    if (longest := tree.get(f"{CHAT_HOOK}.max_new_tokens")) is not None:
        evaluation["max_new_tokens"] = longest
    return {"optim": _optim(tree, accumulate), "evaluation": evaluation, "run": _run(tree, accumulate)}


def _accumulate(tree: ConfigTree) -> int:
    """Micro-batches of a step, without XTuner's factor for sequence parallelism."""
    devices = int(tree.number("sequence_parallel_size", 1))
    if devices > 1:
        tree.note("sequence_parallel_size", f"{devices}; each device takes full sequences, so steps are smaller")
    return max(1, int(tree.number("optim_wrapper.accumulative_counts", 1)) // max(1, devices))


def _optim(tree: ConfigTree, accumulate: int) -> dict[str, Any]:
    path = "optim_wrapper.optimizer"
    if (optimizer := tree.type_name(path)) != "AdamW":
        tree.note(f"{path}.type", f"{optimizer}; AdamW is used")
    if tree.get("optim_wrapper.dtype") == "float16":
        tree.note("optim_wrapper.dtype", "float16; quant.compute decides: bf16 where the device supports it")
    epochs = tree.get("train_cfg.max_epochs")
    betas = tree.get(f"{path}.betas", (0.9, 0.999))
    length = {"epochs": epochs} if epochs is not None else {"steps": _steps(tree, "train_cfg.max_iters", accumulate)}
    optim = {
        "learning_rate": tree.number(f"{path}.lr", 1e-3),
        **length,
        "micro_batch": tree.get("train_dataloader.batch_size", 1),
        "accumulate": accumulate,
        **_schedule(tree, by_epoch=epochs is not None),
        "weight_decay": tree.get(f"{path}.weight_decay", 0.01),
        "betas": list(betas) if isinstance(betas, tuple) else betas,
        "gradient_checkpointing": tree.get("model.use_activation_checkpointing", True),
    }
    if tree.has("optim_wrapper.clip_grad"):
        return optim | {"clip": tree.get("optim_wrapper.clip_grad.max_norm", 1.0)}
    tree.note("optim_wrapper.clip_grad", "XTuner does not clip gradients; twinlens clips to a norm of 1")
    return optim


def _schedule(tree: ConfigTree, by_epoch: bool) -> dict[str, Any]:
    """Warm-up and schedule from mmengine's schedulers: usually a warm-up and a decay."""
    path = "param_scheduler"
    length = "train_cfg.max_epochs" if by_epoch else "train_cfg.max_iters"
    if (total := tree.number(length, 1)) <= 0:
        raise tree.error(f"{length} is {total}; write a number above 0")
    warmup, schedule = 0.0, "constant"
    for part in [path] if tree.has(f"{path}.type") else [f"{path}.{name}" for name in tree.keys(path)]:
        scheduler = tree.type_name(part)
        if scheduler == "LinearLR" and tree.number(f"{part}.end_factor", 1) >= 1:
            if by_epoch and not tree.get(f"{part}.by_epoch", True):
                tree.note(part, "the warm-up is in iterations and the run in epochs; optim.warmup is 0.03")
                warmup = 0.03
            else:
                warmup = round(tree.number(f"{part}.end", 0) / total, 6)
        elif scheduler in ("CosineAnnealingLR", "LinearLR"):
            schedule = "cosine" if scheduler == "CosineAnnealingLR" else "linear"
            if tree.number(f"{part}.eta_min", 0):
                tree.note(f"{part}.eta_min", "in twinlens the learning rate falls to 0")
        elif scheduler != "ConstantLR":
            schedule = "cosine"
            tree.note(part, "not supported; cosine is used")
    return {"warmup": warmup, "schedule": schedule}


def _run(tree: ConfigTree, accumulate: int) -> dict[str, Any]:
    path = "default_hooks.checkpoint"
    run: dict[str, Any] = {}
    if tree.get(f"{path}.by_epoch", True):
        tree.note(f"{path}.interval", f"{tree.get(f'{path}.interval', -1)} in epochs; set run.save_every, in steps")
    else:
        run["save_every"] = _steps(tree, f"{path}.interval", accumulate)
    if (keep := int(tree.number(f"{path}.max_keep_ckpts", -1))) > 0:
        run["keep"] = keep
    else:
        tree.note(f"{path}.max_keep_ckpts", "XTuner keeps all checkpoints; twinlens keeps run.keep of them")
    if (seed := tree.get("randomness.seed")) is not None:
        run["seed"] = seed
    return run


def _steps(tree: ConfigTree, path: str, accumulate: int) -> int:
    """A number of iterations (micro-batches) as optimizer steps; 0 if it is not positive."""
    iterations = int(tree.number(path, 0))
    if iterations <= 0:
        return 0
    steps = max(1, round(iterations / accumulate))
    if accumulate > 1:
        tree.note(path, f"{iterations} iterations (micro-batches) are {steps} steps of {accumulate}")
    return steps
