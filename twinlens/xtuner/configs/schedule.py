"""How long and how an XTuner config trains, as a task's: `optim`, `evaluation` and `run`."""

from typing import Any

from twinlens.xtuner.configs.tree import HOOK, ConfigTree


def training(tree: ConfigTree) -> dict[str, Any]:
    """`optim`, `evaluation` and `run`; what XTuner counts in iterations is counted in optimizer steps."""
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
    """Optimizer steps for iterations of one micro-batch each; 0 where there are none."""
    iterations = int(tree.number(path, 0))
    if iterations <= 0:
        return 0
    steps = max(1, round(iterations / accumulate))
    if accumulate > 1:
        tree.differ(path, f"{iterations} iterations of one micro-batch are {steps} steps of {accumulate}")
    return steps
