import json
import subprocess
import sys
from pathlib import Path

import pytest

ROW = '{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}\n'
BARE = "model: embedded\ndata: {files: [data.jsonl]}\noptim: {steps: 2}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "task.yaml").write_text(BARE, encoding="utf-8")
    return tmp_path


def twinlens(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "twinlens", *words], cwd=folder, capture_output=True, text=True)


def refused(folder: Path, *words: str) -> str:
    done = twinlens(folder, *words)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("words", [["list-cfg"], ["show-cfg", "task.yaml"], ["check", "task.yaml", "--data-only"]])
def test_light_verbs_import_no_heavy_libraries(folder: Path, words: list[str]) -> None:
    code = (
        "import sys\n"
        "from twinlens.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'rich', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_list_cfg_by_pattern_and_as_json(folder: Path) -> None:
    tasks = json.loads(twinlens(folder, "list-cfg", "-p", "PERSONA", "--json").stdout)["tasks"]
    assert {task["name"] for task in tasks} == {
        *("internlm2-chat-1_8b-persona", "internlm-chat-7b-persona", "embedded-persona")
    }
    assert "-p nothing" in refused(folder, "list-cfg", "-p", "nothing")


def test_copy_cfg_explains_settings_and_does_not_overwrite(folder: Path) -> None:
    done = twinlens(folder, "copy-cfg", "embedded-persona", "mine.yaml")
    assert done.returncode == 0
    assert done.stdout.endswith("next: twinlens check mine.yaml\n")
    assert "  # Rank of the update matrices.\n  rank: " in (folder / "mine.yaml").read_text(encoding="utf-8")
    (folder / "mine.yaml").write_text("mine", encoding="utf-8")
    assert "--force" in refused(folder, "copy-cfg", "embedded-persona", "mine.yaml")
    assert (folder / "mine.yaml").read_text(encoding="utf-8") == "mine"
    assert twinlens(folder, "copy-cfg", "embedded-persona", "mine.yaml", "--force").returncode == 0
    assert twinlens(folder, "copy-cfg", "embedded-persona", ".").returncode == 0
    assert (folder / "embedded-persona.yaml").exists()
    assert "list-cfg" in refused(folder, "copy-cfg", "no-such", "x.yaml")


def test_show_cfg_prints_a_task_that_reads_back(folder: Path) -> None:
    done = twinlens(folder, "show-cfg", "task.yaml", "optim.learning_rate=1e-4")
    assert "optim.learning_rate: (default) -> 0.0001" in done.stderr
    (folder / "shown.yaml").write_text(done.stdout, encoding="utf-8")
    assert twinlens(folder, "show-cfg", "shown.yaml").stdout == done.stdout


def test_check_of_a_correct_task(folder: Path) -> None:
    done = twinlens(folder, "check", "task.yaml", "--data-only")
    assert "data: data.jsonl: 1 rows" in done.stdout
    assert done.stdout.endswith("next: twinlens check task.yaml\n")
    assert json.loads(twinlens(folder, "check", "task.yaml", "--data-only", "--json").stdout)["ok"] is True
    assert not (folder / "work_dirs").exists()


def test_check_refuses_in_one_sentence(folder: Path) -> None:
    assert refused(folder, "check", "task.yaml", "--data-only", "lr=1").count("\n") == 1
    (folder / "data.jsonl").write_text(ROW + '{"messages": []}\n', encoding="utf-8")
    assert "data.jsonl, line 2" in refused(folder, "check", "task.yaml", "--data-only")


def test_doctor_shows_what_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.test")
    done = twinlens(folder, "doctor", "--json")
    facts = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in facts["found"]}
    assert found["4-bit"]["ok"] is True
    assert found["model hub"]["state"].startswith("http://mirror.test, cached at")
    assert done.returncode == (0 if facts["ready"] else 2)
    assert all(finding["mend"] for finding in facts["found"] if finding["needed"] and not finding["ok"])
