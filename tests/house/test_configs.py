"""Every file under `configs/` loads and has the documented header."""

import json
import re
from pathlib import Path

import pytest

from tuning.paths import CONFIGS, resolve_path
from twinlens.task_files import TASK_TYPES, read_task, shipped_tasks

TASKS = sorted(shipped_tasks().values())


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_shipped_tasks_load(file: Path) -> None:
    task, _ = read_task(file)
    assert type(task) is TASK_TYPES[file.parent.name]
    named = [*task.evaluation.probes, *task.rehearsal.prompts, *task.rehearsal.files]
    assert [str(path) for path in named if not resolve_path(path).exists()] == [], "in the task, but not shipped"


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_headers_have_command_hardware_cost_and_result(file: Path) -> None:
    header = re.split(r"(?m)^\w", file.read_text(encoding="utf-8"))[0]
    for said in (f"twinlens train configs/{file.parent.name}/{file.name}", "# hardware:", "# cost:", "# result:"):
        assert said in header


def test_every_folder_of_tasks_is_known() -> None:
    known = {*TASK_TYPES, "projectors", "data", "probes", "deepspeed", "pictures"}
    assert {folder.name for folder in CONFIGS.iterdir() if any(folder.iterdir())} <= known


@pytest.mark.parametrize("file", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_presets_match_their_names(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    zero = config["zero_optimization"]
    assert f"zero{zero['stage']}" in file.stem
    assert ("offload" in file.stem) == ("offload_optimizer" in zero)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[key] == "auto", f"{key} belongs to the task"
