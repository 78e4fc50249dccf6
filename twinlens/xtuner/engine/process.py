"""Run XTuner's trainer as a child process: read its log, report its steps."""

import json
import math
import re
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

import twinlens.xtuner.engine.launch as launch
from tuning.errors import DataError, DeviceError, Interrupted, ModelError
from tuning.progress import ProgressBar
from tuning.run_dir import RunDir
from tuning.training.engine import StepReport, stop_on_signal
from twinlens.xtuner.engine.environment import python_of, variables
from twinlens.xtuner.engine.inputs import ArrowRows

LOG = "xtuner.log"
POLL_SECONDS = 0.5


def run_trainer(environment: Path, config: Path, run_dir: RunDir, rows: ArrowRows, on_gpu: bool) -> list[StepReport]:
    """Run the trainer to its end; write its steps to `steps.jsonl` and its output to `xtuner.log`.

    Raises:
        DataError: a loss is not finite.
        DeviceError: out of memory.
        ModelError: it stopped with an error.
        Interrupted: the user stopped it.
    """
    folder = config.parent
    command = [str(python_of(environment)), launch.__file__, str(config), "--work-dir", str(folder)]
    reports: list[StepReport] = []
    read = peak = 0
    with (
        tempfile.TemporaryDirectory() as home,
        (folder / LOG).open("wb") as log,
        stop_on_signal() as stop,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_variables(on_gpu, home)) as process,
        ExitStack() as cleanup,
        ProgressBar("training in XTuner", rows.steps) as progress,
    ):
        cleanup.callback(process.kill)  # no effect on a process that has ended
        ended = False
        while not ended:
            ended = process.poll() is not None  # before the log is read, so that the last lines are not missed
            peak = max(peak, _resident_bytes(process))
            lines = _logged_lines(folder)[read:]
            read += len(lines)
            for values in map(json.loads, lines):
                if "loss" not in values:
                    continue
                report = _report(values, len(reports), rows, peak)
                reports.append(report)
                run_dir.append(run_dir.steps, [asdict(report)])
                if not math.isfinite(report.loss):  # mmengine would train on with NaN weights
                    raise DataError(
                        f"step {report.step}: the loss is {report.loss} in XTuner; lower optim.learning_rate, or set "
                        "quant.compute=bf16."
                    )
                progress.advance(1, str(report))
            if stop.requested:
                raise Interrupted(f"stopped after step {len(reports)}; XTuner saves no checkpoints: start a new run.")
            if not ended:
                time.sleep(POLL_SECONDS)
    if process.returncode or len(reports) != rows.steps:
        raise _failure(process.returncode, folder / LOG)
    return reports


def _variables(on_gpu: bool, home: str) -> dict[str, str]:
    """Environment variables of the trainer: offline, and without a GPU where the task has none."""
    offline = variables() | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": home}
    return offline if on_gpu else offline | {"CUDA_VISIBLE_DEVICES": ""}


def _logged_lines(folder: Path) -> list[bytes]:
    """The complete lines of mmengine's log, JSON objects; one line for each step."""
    file = next(folder.glob("*/vis_data/scalars.json"), None)
    return file.read_bytes().split(b"\n")[:-1] if file else []


def _report(values: dict[str, Any], step: int, rows: ArrowRows, resident: int) -> StepReport:
    iters, tokens, labels = rows.of_step(step)
    seconds = max(float(values["time"]) * iters, 1e-9)
    memory = int(values["memory"]) << 20 if "memory" in values else resident
    return StepReport(
        step + 1, float(values["loss"]), float(values["lr"]), float(values.get("grad_norm", 0.0)), tokens, labels,
        round(seconds, 4), round(tokens / seconds, 1), memory,
    )  # fmt: skip


def _resident_bytes(process: subprocess.Popen[bytes]) -> int:
    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return 0


def _failure(code: int, log: Path) -> DeviceError | ModelError:
    """An error with the last error line of the trainer's log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    reason = errors[-1] if errors else f"exit status {code}" if code else "it ended before its last step"
    if code == -signal.SIGKILL or "out of memory" in reason.lower():
        return DeviceError(
            f"XTuner ran out of memory ({reason}); lower optim.micro_batch or data.max_length, or set "
            f"optim.gradient_checkpointing=true; the log is {log}."
        )
    return ModelError(f"XTuner stopped ({reason.rstrip('.')}); the log is {log}.")
