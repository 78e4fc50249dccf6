"""Rules beyond the linters: torch imports, file length, docstring parameters, package indexes."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

ROOMS = ("tuning", "llm", "vlm", "data_gen", "twinlens")
SOURCES = sorted(file for room in (*ROOMS, "tests", "docs") for file in (ROOT / room).rglob("*.py"))
LONGEST = 400


def modules(*folders: str) -> list[str]:
    """Every module of some folders and their subfolders."""
    files = (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.name != "__init__.py"]


TORCH_FREE = [
    *(f"tuning.{file.stem}" for file in sorted((ROOT / "tuning").glob("*.py")) if file.name != "__init__.py"),
    *modules("tuning/data", "tuning/evaluation", "data_gen", "twinlens/xtuner/configs"),
    *("llm.settings", "llm.data_files", "llm.checkpoints.embedded", "vlm.settings", "vlm.data_files"),
    *("twinlens.cli.app", "twinlens.tasks", "twinlens.task_files", "twinlens.checks"),
]


def test_fast_modules_do_not_import_torch() -> None:
    code = (
        "import importlib, sys\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'peft', 'matplotlib'}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not heavy & set(sys.modules), f'{name} imports {heavy & set(sys.modules)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *TORCH_FREE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_init_files_are_empty() -> None:
    assert [str(file) for file in SOURCES if file.name == "__init__.py" and file.read_text(encoding="utf-8")] == []


def test_files_stay_short() -> None:
    lines = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8").count("\n") for file in SOURCES}
    assert {file: count for file, count in lines.items() if count > LONGEST} == {}


def test_docstrings_explain_parameters_that_exist() -> None:
    wrong: list[str] = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            section = re.search(r"(?ms)^Args:\n(.*?)(?=^\S|\Z)", ast.get_docstring(node) or "")
            explained = re.findall(r"(?m)^    (\w+): ", section[1]) if section else []
            names = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
            names |= {
                part.target.id
                for part in ast.walk(node)
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            }
            wrong += [f"{file.relative_to(ROOT)}: {node.name}: {name}" for name in explained if name not in names]
    assert wrong == []


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
