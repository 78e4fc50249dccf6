import pytest

from tuning.errors import ConfigError, DataError, DeviceError
from tuning.run_dir import RunDir, create_run, open_run, read_jsonl


def test_two_runs_in_one_second_get_two_folders(tmp_path):
    assert create_run(tmp_path, "a").path != create_run(tmp_path, "a").path


def test_a_work_dir_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be written"):
        create_run(tmp_path / "file", "a")


def test_after_a_failed_checkpoint_only_the_old_ones_remain(tmp_path):
    run = RunDir(tmp_path)
    with run.new_checkpoint(1, 2) as folder:
        (folder / "x").write_text("1")
    with pytest.raises(ZeroDivisionError), run.new_checkpoint(2, 2) as folder:
        raise ZeroDivisionError
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    for step in (2, 3):
        with run.new_checkpoint(step, 2) as folder:
            (folder / "x").write_text("1")
    assert [step for step, _ in run.checkpoints()] == [2, 3]


def test_resume_removes_rows_after_the_checkpoint_and_an_incomplete_last_line(tmp_path):
    run = RunDir(tmp_path)
    run.append(run.steps, [{"step": step} for step in (1, 2, 3)])
    with run.steps.open("a") as stream:
        stream.write('{"step": 4, "lo')
    run.drop_records_after(2)
    run.append(run.steps, [{"step": 3}])
    assert [row["step"] for row in read_jsonl(run.steps)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "steps.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"steps\.jsonl, line 2"):
        read_jsonl(tmp_path / "steps.jsonl")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.yaml is missing"):
        open_run(tmp_path)
