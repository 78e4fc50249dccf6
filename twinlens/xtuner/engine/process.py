"""XTuner's trainer as a process of its own: started, followed step by step, and believed only when it ends well."""

import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

import twinlens.xtuner.engine.launch as launch
from tuning.errors import DataError, DeviceError, Interrupted, ModelError
from tuning.progress import ProgressBar
from tuning.run_dir import RunDir
from tuning.training.engine import StepReport, stop_on_signal
from twinlens.xtuner.engine.environment import Environment
from twinlens.xtuner.engine.inputs import ArrowRows

LOG = "xtuner.log"
LOOK_SECONDS = 0.5


def run_trainer(
    environment: Environment, config: Path, run_dir: RunDir, rows: ArrowRows, on_gpu: bool
) -> list[StepReport]:
    """Run the trainer to its end; its steps go to `steps.jsonl` as they come, what it says to `xtuner.log`.

    Raises:
        DataError: a loss is not finite.
        DeviceError: out of memory.
        ModelError: it stopped with an error, whose last line is told.
        Interrupted: asked to stop.
    """
    work = config.parent
    command = [str(environment.python), launch.__file__, str(config), "--work-dir", str(work)]
    reports: list[StepReport] = []
    scalars = _Scalars(work)
    peak = 0
    with (
        tempfile.TemporaryDirectory() as home,
        (work / LOG).open("wb") as log,
        stop_on_signal() as stop,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_surroundings(on_gpu, home)) as process,
        _ended(process),
        ProgressBar("training in XTuner", rows.steps) as progress,
    ):
        ended = False
        while not ended:
            ended = process.poll() is not None  # before the log is read, so that its end is
            peak = max(peak, _resident(process))
            for values in scalars.fresh():
                reports.append(_report(values, len(reports), rows, peak))
                run_dir.append(run_dir.steps, [asdict(reports[-1])])
                _refuse_not_finite(reports[-1])
                progress.advance(1, str(reports[-1]))
            if stop.requested:
                raise Interrupted(
                    f"stopped after step {len(reports)}; XTuner keeps nothing before the end: train anew."
                )
            if not ended:
                time.sleep(LOOK_SECONDS)
    if process.returncode or len(reports) != rows.steps:
        _tell_failure(process.returncode, work / LOG)
    return reports


def _surroundings(on_gpu: bool, home: str) -> dict[str, str]:
    """Our environment without our packages, and with nothing fetched from anywhere."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": home}
    return kept if on_gpu else kept | {"CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Nothing is left running, whatever happens here."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class _Scalars:
    """What mmengine logs, one row a step, each row once."""

    def __init__(self, work: Path) -> None:
        self._work, self._read = work, 0

    def fresh(self) -> list[dict[str, Any]]:
        """The rows since the last time; a line that is still being written is left for the next."""
        file = next(self._work.glob("*/vis_data/scalars.json"), None)
        if file is None:
            return []
        with file.open("rb") as stream:
            stream.seek(self._read)
            lines = [line for line in stream if line.endswith(b"\n")]
        self._read += sum(map(len, lines))
        return [row for row in map(json.loads, lines) if "loss" in row]


def _report(values: dict[str, Any], step: int, rows: ArrowRows, resident: int) -> StepReport:
    iters, tokens, labels = rows.of_step(step)
    seconds = max(float(values["time"]) * iters, 1e-9)
    memory = int(values["memory"]) << 20 if "memory" in values else resident
    return StepReport(
        step + 1, float(values["loss"]), float(values["lr"]), float(values.get("grad_norm", 0.0)), tokens, labels,
        round(seconds, 4), round(tokens / seconds, 1), memory,
    )  # fmt: skip


def _refuse_not_finite(report: StepReport) -> None:
    """mmengine would train on, with NaN in the weights."""
    if not math.isfinite(report.loss):
        raise DataError(
            f"step {report.step}: the loss is {report.loss} in XTuner; lower optim.learning_rate, or set "
            "quant.compute=bf16."
        )


def _resident(process: subprocess.Popen[bytes]) -> int:
    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return 0


def _tell_failure(code: int, log: Path) -> None:
    """The trainer's last word as one sentence."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    reason = errors[-1] if errors else f"exit status {code}" if code else "it ended before its last step"
    if code == -signal.SIGKILL or "out of memory" in reason.lower():
        raise DeviceError(
            f"XTuner ran out of memory ({reason}); lower optim.micro_batch or data.max_length, or set "
            f"optim.gradient_checkpointing=true; its log is {log}."
        )
    raise ModelError(f"XTuner stopped ({reason.rstrip('.')}); its log is {log}.")
