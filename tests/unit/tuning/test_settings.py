from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml.comments import CommentedMap

from llm.settings import TextTask
from tuning.errors import ConfigError
from tuning.settings import NAMES_IN_OTHER_KITS, apply_overrides, read_task_document, settings_group_of
from twinlens.task_files import read_task

MINIMAL = "model: embedded\ndata:\n  files: [a.jsonl]\noptim:\n  steps: 5\n"


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_task(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("number", ["2e-4", "2E-4", "2.0e-4", "0.0002"])
def test_numbers_can_have_any_usual_format(task_file: Path, number: str) -> None:
    task_file.write_text(MINIMAL + f"  learning_rate: {number}\n", encoding="utf-8")
    assert read_task(task_file)[0].optim.learning_rate == 2e-4
    assert read_task(task_file, [f"optim.learning_rate={number}"])[0].optim.learning_rate == 2e-4


def test_overrides_report_the_old_and_the_new_value(task_file: Path) -> None:
    task, changes = read_task(task_file, ["optim.steps=7", "lora.rank=8", "data.files=[b.jsonl, c.jsonl]"])
    assert (task.optim.steps, task.lora.rank, task.data.files) == (7, 8, (Path("b.jsonl"), Path("c.jsonl")))
    assert changes[:2] == ["optim.steps: 5 -> 7", "lora.rank: (default) -> 8"]


def test_an_empty_override_sets_null(task_file: Path) -> None:
    task, _ = read_task(task_file, ["optim.steps=", "optim.epochs=2"])
    assert (task.optim.steps, task.optim.epochs) == (None, 2)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), st.integers())
def test_an_override_reaches_any_depth(keys: list[str], value: int) -> None:
    document = CommentedMap()
    apply_overrides(document, [f"{'.'.join(keys)}={value}"])
    for key in keys:
        document = document[key]
    assert document == value


@pytest.mark.parametrize("override", ["optim.steps", "=5", "optim.steps=[", "model.deep=1"])
def test_the_error_names_the_broken_override(task_file: Path, override: str) -> None:
    assert refusal(task_file, override).startswith(f"{override}: ")


def test_all_faults_are_reported_together_with_line_and_key(task_file: Path) -> None:
    task_file.write_text(MINIMAL + "  micro_batch: 0\nlora:\n  rank: many\n  lora_alpha: 3\n", encoding="utf-8")
    lines = refusal(task_file).splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{task_file}, line 6: optim.micro_batch: ") for line in lines)
    assert any(line.startswith(f"{task_file}, line 8: lora.rank: ") for line in lines)
    assert any("line 9: lora.lora_alpha: no such key; its name here is lora.alpha." in line for line in lines)


def test_a_value_that_is_not_a_list_is_refused(task_file: Path) -> None:
    file = str(task_file)
    assert refusal(task_file, "data.files=a.jsonl") == (
        f"{file}, line 3: data.files: must be a list; write it in brackets, such as [a.jsonl]."
    )
    assert (
        refusal(task_file, "data.files=[]")
        == f"{file}, line 3: data.files: is an empty list; write at least one value."
    )


def test_steps_or_epochs_is_required(task_file: Path) -> None:
    assert "optim.steps or optim.epochs" in refusal(task_file, "optim.epochs=1")
    assert "optim.steps or optim.epochs" in refusal(task_file, "optim.steps=")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"a: [1\nb: 2\n", "line 2: not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_a_task_is_refused(task_file: Path, content: bytes, reason: str) -> None:
    task_file.write_bytes(content)
    assert reason in refusal(task_file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_task_document(path)


def test_hints_name_settings_that_exist() -> None:
    for name, here in NAMES_IN_OTHER_KITS.items():
        block = TextTask
        for part in here.split("."):
            assert part in block.model_fields, f"{name} -> {here}"
            block = settings_group_of(block.model_fields[part])  # type: ignore[assignment]


def test_every_setting_has_a_docstring() -> None:
    for name, field in TextTask.model_fields.items():
        inner = getattr(settings_group_of(field), "model_fields", None)
        for key, setting in (inner or {name: field}).items():
            assert setting.description, f"{name}.{key} has no docstring"


def test_rehearsal_accepts_prompts_and_files(task_file: Path) -> None:
    assert read_task(task_file)[0].rehearsal.files == ()
    task, _ = read_task(task_file, ["rehearsal.files=[others.jsonl, text.jsonl]"])
    assert task.rehearsal.files == (Path("others.jsonl"), Path("text.jsonl"))
    assert "rehearsal.files" in refusal(task_file, "rehearsal.files=3")
