"""Training loop on accelerate: one device, several devices under torchrun, or DeepSpeed.

It uses only modules and batches. `model(batch)` returns the summed loss and the number of labelled tokens. Gradients
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
from tuning.training.packing import MicroBatches
from tuning.training.samples import Batch

log = logging.getLogger("twinlens")
# The environment of torchrun for a single process. Port 0 selects a free port.
SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, over all devices.

    Args:
        loss: mean over the step's labelled tokens, in nats.
        grad_norm: gradient norm before clipping.
        tokens: number of tokens without padding; `labels` of them are labelled.
        seconds: duration of this step.
        peak_memory: bytes, maximum of the process so far (GPU memory on a GPU).
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
    """Evaluation every `every` steps; 0 evaluates only before and after training.

    Args:
        evaluate: answers to probes after a number of steps, as rows for samples.jsonl.
        validate: the validation loss; None if no rows are held out.
    """

    every: int
    evaluate: Callable[[int], list[dict[str, Any]]]
    validate: Callable[[], float | None]


def fit(
    trainable: TrainableModule,
    batches: MicroBatches,
    optim: Optim,
    run: Run,
    run_dir: RunDir,
    hooks: EvaluationHooks,
    *,
    resume: bool = False,
    deepspeed: dict[str, Any] | None = None,
) -> list[StepReport]:
    """Train from the start or from the last checkpoint to the end, and return the reports of these steps.

    Raises:
        DataError: a loss or gradient is not finite; the error names the rows of the step.
        DeviceError: out of memory, or the run folder cannot be written.
        Interrupted: a signal asked to stop; a checkpoint was saved.
    """
    accelerator = make_accelerator(optim, run, run_dir, deepspeed)
    share = accelerator.num_processes * optim.accumulate
    steps = -(-batches.count() // share)
    optimizer = torch.optim.AdamW(
        parameter_groups(trainable, optim.learning_rate), betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    torch.manual_seed(run.seed + accelerator.process_index)  # dropout differs between devices
    model, optimizer = accelerator.prepare(trainable.module, optimizer)
    checkpoint = Checkpoint(accelerator, trainable, model, optimizer, run_dir, run.keep)
    done = checkpoint.load() if resume else 0
    if accelerator.is_main_process:
        run_dir.drop_records_after(done)
    accelerator.init_trackers("twinlens")
    reports: list[StepReport] = []
    groups = micro_batches_by_step(batches, accelerator, optim.accumulate, done)
    with stop_on_signal() as stop, ProgressBar("training", steps, done, accelerator.is_main_process) as progress:
        if not done:
            evaluate(0, model, hooks, run_dir, accelerator)
        for step in range(done + 1, steps + 1):
            report = train_step(accelerator, model, optimizer, next(groups), optim, step, steps)
            reports.append(report)
            values: dict[str, Any] = asdict(report)
            last = step == steps
            if last or (hooks.every and step % hooks.every == 0):
                values["validation_loss"] = evaluate(step, model, hooks, run_dir, accelerator)
            if accelerator.is_main_process:
                run_dir.append(run_dir.steps, [values])
            accelerator.log({key: value for key, value in values.items() if value is not None}, step=step)
            progress.advance(1, str(report))
            stopping = stop_requested(accelerator, stop)
            if stopping or (run.save_every and (last or step % run.save_every == 0)):
                checkpoint.save(step)
            if stopping and not last:
                raise Interrupted(f"stopped after step {step}; resume with `twinlens train --resume {run_dir.path}`.")
        with gathered_parameters(accelerator, trainable.module):
            if accelerator.is_main_process:
                trainable.save_final()
    accelerator.end_training()
    return reports


def parameter_groups(trainable: TrainableModule, learning_rate: float) -> list[dict[str, Any]]:
    """The trained parameters as AdamW's groups, one group for each peak learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trainable.module.named_parameters():
        if parameter.requires_grad:
            rates = (rate for prefix, rate in trainable.learning_rates.items() if name.startswith(prefix))
            groups.setdefault(next(rates, learning_rate), []).append(parameter)
    return [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()]


def make_accelerator(optim: Optim, run: Run, run_dir: RunDir, deepspeed: dict[str, Any] | None) -> Accelerator:
    """An Accelerator with all values that it would otherwise take from the environment or a dataloader."""
    plugin = None
    if deepspeed is not None:
        if "RANK" not in os.environ:  # without torchrun, DeepSpeed would look for other processes through MPI
            os.environ.update(SINGLE_PROCESS)
        config = deepspeed | {
            "train_micro_batch_size_per_gpu": optim.micro_batch,
            "gradient_accumulation_steps": optim.accumulate,
            "gradient_clipping": optim.clip,
            "bf16": {"enabled": False},  # trained weights stay fp32; the module computes under autocast
            "fp16": {"enabled": False},
        }
        config.pop("train_batch_size", None)
        plugin = DeepSpeedPlugin(hf_ds_config=config)
    try:
        return Accelerator(
            # With cpu=True, accelerate would silently ignore DeepSpeed.
            cpu=plugin is None and (run.device == "cpu" or not torch.cuda.is_available()),
            mixed_precision="no",
            gradient_accumulation_steps=optim.accumulate,
            deepspeed_plugin=plugin,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True)
            ],  # otherwise gradients are in memory twice
            log_with=list(run.trackers) or None,
            project_dir=str(run_dir.path),
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"run.trackers or --deepspeed: {error}; install the missing package or omit it.") from error


def micro_batches_by_step(
    batches: MicroBatches, accelerator: Accelerator, accumulate: int, done: int
) -> Iterator[list[Batch]]:
    """The micro-batches of this process for each step. The last step is filled with batches without labels."""
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
    """Forward, backward and update over the micro-batches of one step (from 1)."""
    started = time.perf_counter()
    factor = rate_factor(step - 1, steps, optim.warmup, optim.schedule)
    for parameters in optimizer.param_groups:
        parameters["lr"] = parameters["peak"] * factor
    counts = torch.tensor(
        [sum(batch.num_labels for batch in group), sum(batch.num_tokens for batch in group)],
        device=accelerator.device,
        dtype=torch.float64,
    )
    labels, tokens = sum_over_processes(accelerator, counts).tolist()
    divisor = max(labels, 1.0)  # XTuner's packing can cut packs without labels from a long prompt
    # This factor undoes accelerate's division by the micro-batches and DDP's division by the processes.
    scale = optim.accumulate * accelerator.num_processes / divisor
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
        check_finite(total, norm, losses, group, step)
        optimizer.step()
        optimizer.zero_grad()
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"step {step}: out of memory on {accelerator.device}; lower optim.micro_batch or data.max_length, "
            "or set optim.gradient_checkpointing=true."
        ) from error
    seconds = time.perf_counter() - started
    return StepReport(
        step, total / divisor, optim.learning_rate * factor, norm, int(tokens), int(labels), round(seconds, 4),
        round(tokens / seconds, 1), peak_memory(accelerator.device),
    )  # fmt: skip


def sum_over_processes(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    summed = accelerator.reduce(value, "sum")
    assert isinstance(summed, torch.Tensor)
    return summed


def stop_requested(accelerator: Accelerator, stop: "StopRequest") -> bool:
    """Whether any process was asked to stop. All must stop after the same step, or some would wait forever."""
    return bool(sum_over_processes(accelerator, torch.tensor(float(stop.requested), device=accelerator.device)))


def gradient_norm(accelerator: Accelerator, model: nn.Module, clip: float) -> float:
    """Clip the gradients and return their norm before clipping. DeepSpeed has already clipped them in backward."""
    if accelerator.distributed_type == "DEEPSPEED":
        return float(model.get_global_grad_norm() or 0.0)  # pyright: ignore[reportCallIssue]
    return float(accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip))  # pyright: ignore[reportArgumentType]


def check_finite(total: float, norm: float, losses: list[torch.Tensor], group: list[Batch], step: int) -> None:
    """Refuse a step that would write NaN into the weights; the error names its rows."""
    if math.isfinite(total) and math.isfinite(norm):
        return
    bad = [batch for batch, loss in zip(group, losses, strict=True) if not math.isfinite(float(loss))] or group
    rows = list(dict.fromkeys(row for batch in bad for row in batch.where))
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    fault = f"the loss is {total}" if not math.isfinite(total) else f"the gradient norm is {norm}"
    raise DataError(
        f"step {step}: {fault} with {', '.join(rows[:8])}{more}; inspect these rows with `twinlens data inspect`, "
        "or lower optim.learning_rate."
    )


def evaluate(
    step: int, model: nn.Module, hooks: EvaluationHooks, run_dir: RunDir, accelerator: Accelerator
) -> float | None:
    """Ask the probes and compute the validation loss, without any effect on training."""
    with torch.random.fork_rng(), torch.no_grad():
        model.eval()
        rows = hooks.evaluate(step)
        loss = hooks.validate()
    if accelerator.is_main_process:
        run_dir.append(run_dir.samples, rows)
        if loss is not None:
            log.info("after step %d: validation loss %.4f", step, loss)
    return loss


def peak_memory(device: torch.device) -> int:
    """Maximum bytes so far: allocated by torch on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(slots=True)
class StopRequest:
    """Whether a signal asked the run to stop."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM requests a stop after the step, with a checkpoint. The second stops at once."""
    stop = StopRequest()

    def request_stop(number: int, _: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log.info("stopping after this step; signal again to stop now without a checkpoint")

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
