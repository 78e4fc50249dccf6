"""XTuner's environment: only a complete one is used; errors give the reason."""

import json
import sys

import numpy as np
import pytest

from llm.settings import TextTask
from tuning.errors import ConfigError, DataError, DeviceError, ModelError
from tuning.run_dir import RunDir, read_jsonl
from twinlens.start import resume
from twinlens.tasks import to_yaml
from twinlens.xtuner.engine.environment import FOLDER, MARKER, find_environment, install, python_of
from twinlens.xtuner.engine.inputs import ArrowRows
from twinlens.xtuner.engine.process import LOG, run_trainer


def test_an_incomplete_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(ModelError, match="twinlens xtuner install"):
        find_environment()
    (tmp_path / MARKER).write_text("{}")
    with pytest.raises(ModelError, match="twinlens xtuner install"):
        find_environment()
    (tmp_path / MARKER).write_text(json.dumps({"bytes": 7}))
    assert find_environment() == tmp_path
    assert install(tmp_path) == 7, "a complete environment is not changed"


def test_a_failed_installation_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DeviceError, match=r"installing XTuner stopped \(No matching distribution found for xtuner"):
        install(tmp_path / "made")
    assert python_of(tmp_path / "made").exists(), "installed packages are kept"
    assert not (tmp_path / "made" / MARKER).exists()


@pytest.mark.parametrize("place", ["file/below", "full"])
def test_an_unsuitable_folder_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(DeviceError, match="--into"):
        install(tmp_path / place)


def test_a_trainer_that_fails_is_a_model_error(tmp_path):
    """Its Python has no XTuner."""
    python = python_of(tmp_path / "env")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    run = RunDir(tmp_path / "run")
    (run.path / "xtuner").mkdir(parents=True)
    config = run.path / "xtuner" / "config.py"
    config.write_text("")
    rows = ArrowRows(np.asarray([3, 4]), np.asarray([1, 1]), 1, 1)
    with pytest.raises(ModelError, match=r"XTuner stopped \(ModuleNotFoundError: .*the log is"):
        run_trainer(tmp_path / "env", config, run, rows, False)
    assert "Traceback" in (config.parent / LOG).read_text()
    assert not run.adapter.exists()


TRAINER = """#!{python}
import pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1], "now", "vis_data")
folder.mkdir(parents=True)
with open(folder / "scalars.json", "w") as log:
    begin, end = '{{"lr": 0.1}}\\n{{"loss": 2.0, "lr": 0.1, "ti', 'me": 0.5}}\\n'
    for text in (begin, end, '{{"loss": {last}, "lr": 0.1, "time": 0.5}}\\n'):
        log.write(text)
        log.flush()
        time.sleep(0.7)
time.sleep({seconds})
"""


@pytest.mark.parametrize(("last", "seconds"), [("1.5", 0), ("NaN", 600)])
def test_steps_of_the_trainer_are_read_from_its_log(tmp_path, last, seconds):
    """The trainer is a script that writes its log in pieces; after a loss that is not finite it must be stopped."""
    python = python_of(tmp_path / "env")
    python.parent.mkdir(parents=True)
    python.write_text(TRAINER.format(python=sys.executable, last=last, seconds=seconds))
    python.chmod(0o755)
    run = RunDir(tmp_path / "run")
    (run.path / "xtuner").mkdir(parents=True)
    rows = ArrowRows(np.asarray([3, 4]), np.asarray([1, 2]), 1, 1)
    arguments = (tmp_path / "env", run.path / "xtuner" / "config.py", run, rows, False)
    if last == "NaN":
        with pytest.raises(DataError, match="step 2: the loss is nan"):
            run_trainer(*arguments)
    else:
        assert [report.loss for report in run_trainer(*arguments)] == [2.0, 1.5]
    steps = list(read_jsonl(run.steps))
    assert [(step["tokens"], step["labels"], step["seconds"]) for step in steps] == [(3, 1, 0.5), (4, 2, 0.5)]


def test_a_run_of_xtuner_is_not_resumed(tmp_path):
    task = TextTask.model_validate({"model": "m", "data": {"files": ["x"]}, "optim": {"steps": 1}})
    (tmp_path / "xtuner").mkdir()
    (tmp_path / "task.yaml").write_text(to_yaml(task))
    with pytest.raises(ConfigError, match="XTuner trained it"):
        resume(tmp_path)
