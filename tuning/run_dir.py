"""Run folder: paths of its files, list of its checkpoints, reading and appending of JSONL logs.

task.yaml  environment.json  data.json  steps.jsonl  samples.jsonl  checkpoints/  adapter/  model/  comparison.*  plots/
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tuning.atomic import atomic_folder, explain_write_errors, write_atomically
from tuning.errors import ConfigError, DataError


class RunDir:
    """The folder of one run.

    `adapter` contains the trained adapter; `model` contains the language model instead, after full fine-tuning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.task = path / "task.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.rehearsal = path / "rehearsal.jsonl"
        self.steps = path / "steps.jsonl"
        self.samples = path / "samples.jsonl"
        self.adapter = path / "adapter"
        self.model = path / "model"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints as (number of optimizer steps, folder), oldest first."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted((int(folder.name.removeprefix("step-")), folder) for folder in found)

    def checkpoint(self, step: int) -> Path:
        """Path of the checkpoint after `step` optimizer steps."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @contextmanager
    def new_checkpoint(self, step: int, keep: int) -> Generator[Path, None, None]:
        """A temporary folder, which becomes `checkpoint(step)` at the end of the block; see `atomic_folder`.

        Then all but the latest `keep` checkpoints are deleted.
        """
        with atomic_folder(self.checkpoint(step), replace=True, shared=True) as folder:
            yield folder
        for _, old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Append JSON lines to a file; they are on disk when this returns."""
        with explain_write_errors(path, "--work-dir"), path.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def drop_records_after(self, step: int) -> None:
        """Remove the log rows after `step`, the step of the checkpoint that the run resumes from."""
        for path in (self.steps, self.samples):
            kept = [row for row in read_jsonl(path) if row["step"] <= step]
            write_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def create_run(work_dir: Path, name: str) -> RunDir:
    """Create a new folder `work_dir/<name>/<time>`.

    Raises:
        DeviceError: the folder cannot be created.
    """
    parent = work_dir / name
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    with explain_write_errors(parent, "--work-dir"):
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(100):
            path = parent / (f"{stamp}-{attempt}" if attempt else stamp)
            with suppress(FileExistsError):  # another run started in the same second
                path.mkdir()
                return RunDir(path)
    raise AssertionError("a hundred runs in one second")


def open_run(path: Path) -> RunDir:
    """Open an existing run folder.

    Raises:
        ConfigError: `path` is not a run folder.
    """
    run = RunDir(path)
    if not run.task.exists():
        raise ConfigError(
            f"{path}: not a run folder (task.yaml is missing); give the folder that `twinlens train` printed."
        )
    return run


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file of a run; an empty list if the file does not exist.

    An incomplete last line, which a killed run leaves behind, is skipped.

    Raises:
        DataError: another line is not valid JSON.
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
