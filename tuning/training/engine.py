"""Training loop on accelerate: one device, several under torchrun, or DeepSpeed.

It knows modules and batches only. `model(batch)` returns the summed loss and the number of labelled tokens; gradients
are normalized by all labelled tokens of a step, over micro-batches and devices.
"""

import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from tuning.errors import ConfigError, DataError, DeviceError, Interrupted
from tuning.progress import ProgressBar
from tuning.run_dir import RunDir
from tuning.settings import Optim, Run
from tuning.training.checkpoint import Checkpoint, TrainableModule, gathered_parameters
from tuning.training.lr_schedule import rate_factor
from tuning.training.samples import Batch, BatchSource

log = logging.getLogger("twinlens")
# What torchrun tells a process, where there is no other; port 0 is any that is free.
SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, over all devices.

    Args:
        loss: mean over the step's labelled tokens, in nats.
        grad_norm: before clipping.
        tokens: without padding; `labels` of them were learned from.
        seconds: of this step alone; `peak_memory` in bytes, of the process so far (GPU memory on a GPU).
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    labels: int
    seconds: float
    tokens_per_second: float
    peak_memory: int

    def __str__(self) -> str:
        memory = f"{self.peak_memory / 2**20:,.0f} MiB"
        return f"loss {self.loss:.3f}  {self.tokens_per_second:,.0f} tokens/s  peak {memory}"


@dataclass(frozen=True, slots=True)
class EvaluationHooks:
    """What is looked at while training, every `every` steps (0: only before and after).

    Args:
        evaluate: answers to probes after so many steps, as rows for samples.jsonl.
        validate: the validation loss, or None where nothing is held out.
    """

    every: int
    evaluate: Callable[[int], list[dict[str, Any]]]
    validate: Callable[[], float | None]


def fit(
    trainee: TrainableModule,
    batches: BatchSource,
    optim: Optim,
    run: Run,
    run_dir: RunDir,
    hooks: EvaluationHooks,
    *,
    resume: bool = False,
    deepspeed: dict[str, Any] | None = None,
) -> list[StepReport]:
    """Train from the start, or from the last checkpoint, to the end; the reports of the steps done now.

    Raises:
        DataError: a loss or gradient is not finite, naming the rows of that step.
        DeviceError: out of memory, or the run folder cannot be written.
        Interrupted: asked to stop; a checkpoint was kept.
    """
    accelerator = make_accelerator(optim, run, run_dir, deepspeed)
    share = accelerator.num_processes * optim.accumulate
    steps = optim.steps or -(-batches.count() // share)
    optimizer = torch.optim.AdamW(
        parameter_groups(trainee, optim.learning_rate), betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    torch.manual_seed(run.seed + accelerator.process_index)  # dropout differs between devices
    model, optimizer = accelerator.prepare(trainee.module, optimizer)
    checkpoint = Checkpoint(accelerator, trainee, model, optimizer, run_dir, run.keep)
    done = checkpoint.load() if resume else 0
    if accelerator.is_main_process:
        run_dir.drop_records_after(done)
    accelerator.init_trackers("twinlens")
    reports: list[StepReport] = []
    source = micro_batches_by_step(batches, accelerator, optim.accumulate, done)
    with stop_on_signal() as stop, ProgressBar("training", steps, done, accelerator.is_main_process) as progress:
        if not done:
            evaluate(0, model, hooks, run_dir, accelerator)
        for step in range(done, steps):
            report = train_step(accelerator, model, optimizer, next(source), optim, step, steps)
            reports.append(report)
            values: dict[str, Any] = asdict(report)
            last = step + 1 == steps
            if last or (hooks.every and (step + 1) % hooks.every == 0):
                values["validation_loss"] = evaluate(step + 1, model, hooks, run_dir, accelerator)
            if accelerator.is_main_process:
                run_dir.append(run_dir.steps, [values])
            accelerator.log({key: value for key, value in values.items() if value is not None}, step=step + 1)
            progress.advance(1, str(report))
            stopping = stop_requested(accelerator, stop)
            if stopping or (run.save_every and (last or (step + 1) % run.save_every == 0)):
                checkpoint.save(step + 1)
            if stopping and not last:
                raise Interrupted(
                    f"stopped after step {step + 1}; go on with `twinlens train --resume {run_dir.path}`."
                )
        with gathered_parameters(accelerator, trainee.module):
            if accelerator.is_main_process:
                trainee.save_final()
    accelerator.end_training()
    return reports


def parameter_groups(trainee: TrainableModule, learning_rate: float) -> list[dict[str, Any]]:
    """The trained parameters, those of one peak learning rate together."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trainee.module.named_parameters():
        if parameter.requires_grad:
            own = (rate for start, rate in trainee.learning_rates.items() if name.startswith(start))
            groups.setdefault(next(own, learning_rate), []).append(parameter)
    return [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()]


def make_accelerator(optim: Optim, run: Run, run_dir: RunDir, deepspeed: dict[str, Any] | None) -> Accelerator:
    """accelerate, told everything that it would otherwise take from its environment or its dataloader."""
    plugin = None
    on_cpu = run.device == "cpu" or not torch.cuda.is_available()
    if deepspeed is not None:
        if "RANK" not in os.environ:  # started without torchrun; DeepSpeed would ask MPI who else there is
            os.environ.update(SINGLE_PROCESS)
        filled = deepspeed | {
            "train_micro_batch_size_per_gpu": optim.micro_batch,
            "gradient_accumulation_steps": optim.accumulate,
            "gradient_clipping": optim.clip,
            "bf16": {"enabled": False},  # what is trained stays fp32; the module computes under autocast
            "fp16": {"enabled": False},
        }
        filled.pop("train_batch_size", None)
        plugin = DeepSpeedPlugin(hf_ds_config=filled)
    try:
        return Accelerator(
            cpu=plugin is None and on_cpu,  # told so, accelerate would leave DeepSpeed out and say nothing
            mixed_precision="no",
            gradient_accumulation_steps=optim.accumulate,
            deepspeed_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # else they are held twice
            log_with=list(run.trackers) or None,
            project_dir=str(run_dir.path),
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"run.trackers or --deepspeed: {error}; install what is missing or leave it out.") from error


def micro_batches_by_step(
    batches: BatchSource, accelerator: Accelerator, accumulate: int, done: int
) -> Iterator[list[Batch]]:
    """For each step this process's micro-batches; the last step is filled up with silenced ones."""
    world, rank = int(accelerator.num_processes), int(accelerator.process_index)
    share = world * accumulate
    stream = batches.stream(done * share)
    while group := list(islice(stream, share)):
        group += [group[-1].without_labels()] * (share - len(group))
        yield [batch.to(accelerator.device) for batch in group[rank::world]]


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    group: list[Batch],
    optim: Optim,
    step: int,
    steps: int,
) -> StepReport:
    """Forward, backward and update over one step's micro-batches."""
    started = time.perf_counter()
    factor = rate_factor(step, steps, optim.warmup, optim.schedule)
    for parameters in optimizer.param_groups:
        parameters["lr"] = parameters["peak"] * factor
    counts = torch.tensor(
        [sum(batch.num_labels for batch in group), sum(batch.num_tokens for batch in group)],
        device=accelerator.device,
        dtype=torch.float64,
    )
    labels, tokens = sum_over_processes(accelerator, counts).tolist()
    learned = max(labels, 1.0)  # packs that XTuner's packing cuts out of a long prompt have nothing to learn
    # accelerate divides by the micro-batches and DDP by the processes: both are undone here.
    scale = optim.accumulate * accelerator.num_processes / learned
    losses: list[torch.Tensor] = []
    model.train()
    try:
        for batch in group:
            with accelerator.accumulate(model):
                loss, _ = model(batch)
                losses.append(loss.detach())
                accelerator.backward(loss * scale)
        norm = gradient_norm(accelerator, model, optim.clip)
        total = float(sum_over_processes(accelerator, torch.stack(losses).sum()))
        check_finite(total, norm, losses, group, step + 1)
        optimizer.step()
        optimizer.zero_grad()
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"step {step + 1}: out of memory on {accelerator.device}; lower optim.micro_batch or data.max_length, "
            "or set optim.gradient_checkpointing=true."
        ) from error
    seconds = time.perf_counter() - started
    return StepReport(
        step + 1, total / learned, optim.learning_rate * factor, norm, int(tokens), int(labels), round(seconds, 4),
        round(tokens / seconds, 1), peak_memory(accelerator.device),
    )  # fmt: skip


def sum_over_processes(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    summed = accelerator.reduce(value, "sum")
    assert isinstance(summed, torch.Tensor)
    return summed


def stop_requested(accelerator: Accelerator, stop: "StopRequest") -> bool:
    """Whether any process was asked to stop: all of them leave after the same step, or some would wait forever."""
    return bool(sum_over_processes(accelerator, torch.tensor(float(stop.requested), device=accelerator.device)))


def gradient_norm(accelerator: Accelerator, model: nn.Module, clip: float) -> float:
    """Clip the gradients to a norm; what it was before. DeepSpeed has clipped and stepped by now."""
    if accelerator.distributed_type == "DEEPSPEED":
        return float(model.get_global_grad_norm() or 0.0)  # pyright: ignore[reportCallIssue]
    return float(accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip))  # pyright: ignore[reportArgumentType]


def check_finite(total: float, norm: float, losses: list[torch.Tensor], group: list[Batch], step: int) -> None:
    """Stop before a step that would write NaN into the weights, naming the rows that were in it."""
    if math.isfinite(total) and math.isfinite(norm):
        return
    bad = [batch for batch, loss in zip(group, losses, strict=True) if not math.isfinite(float(loss))] or group
    rows = list(dict.fromkeys(row for batch in bad for row in batch.where))
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    what = f"the loss is {total}" if not math.isfinite(total) else f"the gradient's norm is {norm}"
    raise DataError(
        f"step {step}: {what} with {', '.join(rows[:8])}{more}; look at these rows with `twinlens data inspect`, "
        "or lower optim.learning_rate."
    )


def evaluate(
    step: int, model: nn.Module, hooks: EvaluationHooks, run_dir: RunDir, accelerator: Accelerator
) -> float | None:
    """Ask the probes and compute the validation loss, leaving no trace on training."""
    training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        model.eval()
        rows = hooks.evaluate(step)
        loss = hooks.validate()
        model.train(training)
    if accelerator.is_main_process:
        run_dir.append(run_dir.samples, rows)
        if loss is not None:
            log.info("after step %d: validation loss %.4f", step, loss)
    return loss


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated by torch on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM lets the step end and keeps a checkpoint; the second stops at once."""
    stop = StopRequest()

    def ask(number: int, _: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log.info("stopping after this step; once more to stop now without a checkpoint")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
