"""Run folder: paths of its files, checkpoints, JSONL logs.

task.yaml  environment.json  data.json  steps.jsonl  samples.jsonl  checkpoints/  adapter/  model/  comparison.*  plots/
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuning.atomic import atomic_folder, write_atomically
from tuning.errors import ConfigError, DataError, DeviceError


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder and the names in it."""

    path: Path

    @property
    def task(self) -> Path:
        return self.path / "task.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def rehearsal(self) -> Path:
        return self.path / "rehearsal.jsonl"

    @property
    def steps(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The language model, where every weight of it was trained."""
        return self.path / "model"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Finished checkpoints as (steps done, folder), oldest first."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted((int(folder.name.removeprefix("step-")), folder) for folder in found)

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after so many steps."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @contextmanager
    def new_checkpoint(self, step: int, keep: int) -> Generator[Path, None, None]:
        """A folder that becomes `checkpoints/step-N` when the block ends well; older ones beyond `keep` are removed."""
        with atomic_folder(self.checkpoint(step), replace=True, shared=True) as folder:
            yield folder
        for _, old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Add JSON lines, on disk when this returns."""
        with explain_write_errors(path), path.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def drop_records_after(self, step: int) -> None:
        """Drop what was logged after a checkpoint that the run goes on from."""
        for path in (self.steps, self.samples):
            kept = [row for row in read_jsonl(path) if row["step"] <= step]
            write_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def create_run(work_dir: Path, name: str) -> RunDir:
    """A fresh folder `work_dir/<name>/<time>`.

    Raises:
        DeviceError: it cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        path = work_dir / name / (stamp if not attempt else f"{stamp}-{attempt}")
        with explain_write_errors(path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir():
                    raise
                continue
            return RunDir(path)
    raise AssertionError("a hundred runs in one second")


def open_run(path: Path) -> RunDir:
    """An existing run folder.

    Raises:
        ConfigError: it is none.
    """
    run = RunDir(path)
    if not run.task.exists():
        raise ConfigError(
            f"{path}: not a run folder (task.yaml is missing); give the folder that `twinlens train` named."
        )
    return run


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of a run; none where the file is not there yet.

    Raises:
        DataError: a line other than the last is broken; a torn last line (a killed run) is left out.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number}: not valid JSON ({error}); delete that line.") from error
    return rows


@contextmanager
def explain_write_errors(path: Path) -> Generator[None, None, None]:
    """Turns a failed write below `path` into one sentence."""
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another --work-dir."
        ) from error
