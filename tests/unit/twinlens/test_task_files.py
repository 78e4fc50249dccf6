import re
from pathlib import Path

import pytest

from tuning.errors import ConfigError
from tuning.settings import SettingsGroup
from twinlens.task_files import TASK_TYPES, describe, explain, find_config, read_task, shipped_tasks

TASKS = sorted(shipped_tasks().values())


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_an_explained_copy_is_the_same_task(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.name
    copy.write_text(explain(file), encoding="utf-8")
    task, _ = read_task(file)
    assert type(task) is TASK_TYPES[file.parent.name]
    assert read_task(copy)[0] == task

    header, body = re.split(r"(?m)^(?=\w)", explain(file), maxsplit=1)
    copy.write_text(header + re.sub(r"(?m)^( *)#(?! \S)", r"\1", body), encoding="utf-8")
    assert read_task(copy)[0] == task, "the comments contain the default values"


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_an_explained_copy_has_every_setting_with_its_docstring(file: Path) -> None:
    text = explain(file)
    for key, field in TASK_TYPES[file.parent.name].model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = getattr(type(default) if isinstance(default, SettingsGroup) else field.annotation, "model_fields", {})
        for name, setting in ({key: field} | inner).items():
            assert re.search(rf"(?m)^ *#? *{name}:", text)
            assert not setting.description or " ".join(setting.description.split()) in text


def test_an_explained_copy_without_lora_has_no_lora_settings(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    file = folder / "whole.yaml"
    file.write_text("# Whole.\nmodel: x\nlora: null\ndata:\n  files: [rows.jsonl]\n", encoding="utf-8")
    text = explain(file)
    assert "rank:" not in text and "`lora: null` fine-tunes all weights" in text


def test_a_task_is_found_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = shipped_tasks()["embedded-persona"]
    for name in ("embedded-persona", "text/embedded-persona.yaml", "configs/text/embedded-persona.yaml"):
        assert find_config(Path(name)) == shipped
    own = tmp_path / "embedded-persona"
    own.write_text("model: x\n", encoding="utf-8")
    assert find_config(Path("embedded-persona")) == Path("embedded-persona")
    with pytest.raises(ConfigError, match="list-cfg"):
        find_config(Path("configs/text"))


def test_headers_begin_with_one_line_about_the_task() -> None:
    for file in TASKS:
        assert describe(file).endswith("."), file
