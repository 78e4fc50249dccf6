"""XTuner's environment: found when it is whole, and an installation that fails says why."""

import json
import sys

import numpy as np
import pytest

from llm.settings import TextTask
from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.run_dir import RunDir
from twinlens.start import resume
from twinlens.tasks import to_yaml
from twinlens.xtuner.engine.environment import FOLDER, MARKER, find_environment, install, python_of
from twinlens.xtuner.engine.inputs import ArrowRows
from twinlens.xtuner.engine.process import LOG, run_trainer


def test_an_unfinished_environment_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(ModelError, match="twinlens xtuner install"):
        find_environment()
    (tmp_path / MARKER).write_text("{}")
    with pytest.raises(ModelError, match="twinlens xtuner install"):
        find_environment()
    (tmp_path / MARKER).write_text(json.dumps({"bytes": 7}))
    assert find_environment() == tmp_path
    assert install(tmp_path) == 7, "what is whole is left as it is"


def test_an_installation_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DeviceError, match=r"installing XTuner stopped \(No matching distribution found for xtuner"):
        install(tmp_path / "made")
    assert python_of(tmp_path / "made").exists(), "what is there by then is kept"
    assert not (tmp_path / "made" / MARKER).exists()


@pytest.mark.parametrize("place", ["file/below", "full"])
def test_a_place_that_will_not_do_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(DeviceError, match="--into"):
        install(tmp_path / place)


def test_a_trainer_that_stops_is_not_believed(tmp_path):
    """It is started with a Python that has no XTuner."""
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


def test_a_run_of_xtuner_is_not_resumed(tmp_path):
    task = TextTask.model_validate({"model": "m", "data": {"files": ["x"]}, "optim": {"steps": 1}})
    (tmp_path / "xtuner").mkdir()
    (tmp_path / "task.yaml").write_text(to_yaml(task))
    with pytest.raises(ConfigError, match="XTuner trained it"):
        resume(tmp_path)
