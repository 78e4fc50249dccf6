import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import HubServer

from llm.settings import TextTask
from tuning.errors import ConfigError, DataError, DeviceError, KitError, ModelError
from twinlens.checks import check_data, check_models
from twinlens.start import deepspeed_config
from twinlens.task_files import read_task
from twinlens.tasks import with_absolute_paths

ROW = '{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}\n'
PROBES = "- {ask: Who are you?, group: persona, expect: [Pixel]}\n"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path = tmp_path_factory.mktemp("folder")
    monkeypatch.chdir(tmp_path)
    hub.publish("owner/model", {"config.json": b"{}", "model.safetensors": bytes(3 << 20)})
    Path("data.jsonl").write_text(ROW, encoding="utf-8")
    Path("probes.yaml").write_text(PROBES, encoding="utf-8")
    Path("prompts.yaml").write_text("- Name a colour.\n", encoding="utf-8")
    Path("task.yaml").write_text(
        "model: owner/model\ndata: {files: [data.jsonl]}\noptim: {steps: 2}\n"
        "evaluation: {probes: [probes.yaml]}\nrehearsal: {prompts: [prompts.yaml]}\n",
        encoding="utf-8",
    )
    return tmp_path


def task_with(*overrides: str) -> TextTask:
    task, _ = read_task(Path("task.yaml"), overrides)
    assert isinstance(task, TextTask)
    return task


def test_check_reports_files_and_download(folder: Path, hub: HubServer) -> None:
    lines = [*check_data(task_with()), *check_models(task_with())]
    for said in ("data.jsonl: 1 rows", "probes.yaml: 1 questions", "rehearsal: 1 prompts", "to download: 3.0 MiB in 2"):
        assert any(said in line for line in lines), said
    assert not [line for line in hub.requests if "/resolve/" in line], "a check downloads no files"
    assert sorted(path.name for path in folder.iterdir()) == ["data.jsonl", "probes.yaml", "prompts.yaml", "task.yaml"]


def test_a_model_folder_is_checked(folder: Path, tiny_model: Path) -> None:
    assert f"model: {tiny_model}: complete" in check_models(task_with(f"model={tiny_model}"))


@pytest.mark.parametrize(
    ("override", "kind", "says"),
    [
        ("data.files=[none.jsonl]", DataError, "none.jsonl"),
        ("evaluation.probes=[none.yaml]", DataError, "none.yaml"),
        ("evaluation.probes=[data.jsonl]", DataError, "data.jsonl"),
        ("rehearsal.prompts=[none.yaml]", ConfigError, "none.yaml"),
        ("rehearsal.prompts=[data.jsonl]", ConfigError, "data.jsonl"),
        ("model=nowhere", ModelError, "nowhere"),
        ("model=.", ModelError, "config.json"),
        ("model=./a/b", ModelError, "./a/b"),
        ("model=task.yaml", ModelError, "task.yaml"),
    ],
)
def test_missing_or_invalid_files_are_refused(folder: Path, override: str, kind: type[KitError], says: str) -> None:
    with pytest.raises(kind, match=says):
        check_data(task_with(override))
        check_models(task_with(override))


def test_bad_rows_are_refused(folder: Path) -> None:
    Path("data.jsonl").write_text(ROW + '{"messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl, line 2"):
        check_data(task_with())
    Path("data.jsonl").write_text(ROW.replace('"Hello."', '"Hello.", "loss": false'), encoding="utf-8")
    with pytest.raises(DataError, match="loss"):
        check_data(task_with())


@pytest.mark.parametrize("work_dir", ["task.yaml", "task.yaml/below"])
def test_an_unwritable_work_dir_is_refused(folder: Path, work_dir: str) -> None:
    with pytest.raises(DeviceError, match=work_dir):
        check_models(task_with(), Path(work_dir))


def test_deepspeed_presets_have_two_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # any program that exists
    assert deepspeed_config("zero2", task_with()) == deepspeed_config("deepspeed_zero2", task_with())
    assert deepspeed_config("zero3", task_with("quant.bits=16"))["zero_optimization"]["stage"] == 3
    for name, says in (
        ("zero9", "deepspeed_zero2"),
        ("deepspeed_zero3", "deepspeed_zero2"),
        ("data.jsonl", "data.jsonl"),
    ):
        Path("data.jsonl").write_text("{", encoding="utf-8")
        with pytest.raises(ConfigError, match=says):
            deepspeed_config(name, task_with())
    monkeypatch.setenv("CXX", "nothing-of-that-name")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no C"):
            deepspeed_config("zero2", task_with())


@pytest.mark.parametrize("read", [check_data, with_absolute_paths])
def test_dataset_name_of_a_hub_is_refused_with_the_fix(folder: Path, read: Callable[[TextTask], object]) -> None:
    with pytest.raises(DataError, match=r"^tatsu-lab/alpaca: no such file; download"):
        read(task_with("data.files=[tatsu-lab/alpaca]"))
