"""Virtual environment for XTuner 0.2.0, whose pinned requirements conflict with those of twinlens.

XTuner's own requirements do not work: it pins bitsandbytes 0.45.0, which imports a module that triton has removed. So
XTuner is installed without its requirements, then they are installed with a current bitsandbytes.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from tuning.atomic import write_atomically
from tuning.errors import DeviceError, ModelError
from tuning.paths import cache_folder

log = logging.getLogger("twinlens")
VERSION = "0.2.0"
FOLDER = "TWINLENS_XTUNER"  # environment variable with the folder of the environment
MARKER = "twinlens.json"  # file of a complete environment
INSTALL = "twinlens xtuner install"
RUN_FOLDER = "xtuner"  # in a run folder: config, inputs, log and checkpoint of XTuner
DISK_BYTES = 10 << 30  # peak disk space of an installation
REQUIREMENTS = (  # XTuner's, with a current bitsandbytes; pinned where XTuner or twinlens depends on the version
    *("transformers==4.48.0", "mmengine==0.10.6", "bitsandbytes==0.50.2", "datasets==5.0.1", "peft==0.21.2"),
    *("einops", "loguru", "openpyxl", "scikit-image", "scipy", "sentencepiece", "tiktoken"),
    "transformers-stream-generator",
)
TEST = "import xtuner.model, xtuner.dataset, xtuner.engine.runner"


def default_folder() -> Path:
    """Folder of the environment: `$TWINLENS_XTUNER`, or in the cache folder."""
    given = os.environ.get(FOLDER)
    return Path(given).expanduser() if given else cache_folder() / f"xtuner-{VERSION}"


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def variables() -> dict[str, str]:
    """Environment variables for another interpreter, without the package paths of this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def find_environment() -> Path:
    """The folder of a complete environment.

    Raises:
        ModelError: there is none.
    """
    folder = default_folder()
    if _installed_bytes(folder) is None:
        raise ModelError(f"--engine xtuner: no XTuner in {folder}; run `{INSTALL}`, or set {FOLDER} to its folder.")
    return folder


def install(folder: Path) -> int:
    """Install XTuner, or finish an interrupted installation; a complete environment is not changed.

    Returns:
        Size of the environment in bytes.

    Raises:
        DeviceError: no suitable Python, too little disk space, or a package cannot be installed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            return _installed_bytes(folder) or _install(folder)
    except OSError as error:
        raise DeviceError(f"{folder}: not writable ({error.strerror}); give another folder with --into.") from error


def _installed_bytes(folder: Path) -> int | None:
    """Size of a complete environment; None for any other folder."""
    try:
        return int(json.loads((folder / MARKER).read_text(encoding="utf-8"))["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _install(folder: Path) -> int:
    from tuning.progress import ProgressBar

    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise DeviceError(f"{folder}: is not empty and not a virtual environment; give another folder with --into.")
    if (free := shutil.disk_usage(folder.parent).free) < DISK_BYTES and not folder.exists():
        raise DeviceError(
            f"{folder}: {free / 2**30:.1f} GiB are free and the installation needs {DISK_BYTES >> 30}; free space or "
            "give another folder with --into."
        )
    pip = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    torch = (f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision"))
    packages = [*torch, *REQUIREMENTS]
    steps = (
        ("virtual environment", [_python(), "-m", "venv", str(folder)]),
        (f"XTuner {VERSION}", [*pip, "--no-deps", f"xtuner=={VERSION}"]),
        ("torch and XTuner's requirements", [*pip, *packages]),
        ("import test", [str(python_of(folder)), "-c", TEST]),
    )
    with ProgressBar("installing", len(steps)) as counter:
        for step, command in steps:
            log.info("%s: %s", folder.name, step)
            _run(command, lambda line: counter.advance(0, line))
            counter.advance(1)
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    facts = {"xtuner": VERSION, "needs": packages, "bytes": size, "made": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_atomically(folder / MARKER, json.dumps(facts, indent=2) + "\n")
    return size


def _python() -> str:
    """A Python that XTuner supports: this one, or one on the path."""
    if sys.version_info < (3, 13):
        return sys.executable
    for name in ("python3.12", "python3.11", "python3.10"):
        if found := shutil.which(name):
            return found
    raise DeviceError(f"XTuner {VERSION} supports Python up to 3.12; install one, such as python3.12.")


def _run(command: list[str], note: Callable[[str], None]) -> None:
    """Run one step of the installation; `note` gets pip's progress lines."""
    output: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=variables()
    ) as process:
        try:
            for line in map(str.strip, process.stdout or ()):
                output.append(line)
                if line.startswith(("Collecting", "Downloading", "Installing")):
                    note(line[:60])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        errors = [line for line in output if line.startswith("ERROR") or "Error:" in line] or output or ["no output"]
        raise DeviceError(
            f"installing XTuner stopped ({errors[-1].removeprefix('ERROR: ')}); fix this and run the same command "
            "again; installed packages are kept."
        )
