"""What import-linter cannot see: torch through other packages, files that grow, addresses that do not belong."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("tuning", "llm", "vlm", "data_gen", "twinlens")
SOURCES = sorted(file for room in (*ROOMS, "tests", "docs") for file in (ROOT / room).rglob("*.py"))
LONGEST = 400

GROUND = [
    *(f"tuning.{name}" for name in ("errors", "settings", "conversation", "containers", "formats", "row_readers")),
    *(f"tuning.{name}" for name in ("row_writers", "card", "files", "probes", "run_dir", "schedule")),
    *(f"data_gen.{file.stem}" for file in sorted((ROOT / "data_gen").glob("*.py")) if file.stem != "__init__"),
    *("llm.settings", "llm.sources", "llm.embedded", "twinlens.cli.app", "twinlens.task_files", "twinlens.checks"),
    *(["vlm.settings"] if importlib.util.find_spec("vlm.settings") else []),
]


def test_the_ground_floor_leaves_torch_alone() -> None:
    code = (
        "import importlib, sys\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'peft', 'matplotlib'}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not heavy & set(sys.modules), f'{name} imports {heavy & set(sys.modules)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *GROUND], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_init_files_are_empty() -> None:
    assert [str(file) for file in SOURCES if file.name == "__init__.py" and file.read_text(encoding="utf-8")] == []


def test_files_stay_short() -> None:
    lines = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8").count("\n") for file in SOURCES}
    assert {file: count for file, count in lines.items() if count > LONGEST} == {}


def test_no_tracked_file_names_a_package_index() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    signs = ("pypi" + ".org", "python" + "hosted", "index" + "-url", "find" + "-links", "registry" + ".npmjs")
    found: list[str] = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="ignore")
            found += [f"{name}: {sign}" for sign in signs if sign in text]
    assert found == []
