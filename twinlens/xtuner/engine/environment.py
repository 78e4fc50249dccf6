"""The virtual environment that XTuner 0.2.0 runs in, for its pins can never live in ours.

As it installs by itself it trains nothing: bitsandbytes 0.45.0, which it pins, imports a part of triton that is gone.
So it is installed without its requirements, and these are given with a bitsandbytes of today.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from tuning.atomic import write_atomically
from tuning.errors import DeviceError, ModelError
from tuning.paths import cache_folder

log = logging.getLogger("twinlens")
VERSION = "0.2.0"
FOLDER = "TWINLENS_XTUNER"  # the environment variable that names an environment elsewhere
MARKER = "twinlens.json"
INSTALL = "twinlens xtuner install"
RUN_FOLDER = "xtuner"  # of a run that it trained: config, inputs, log and checkpoint
ROOM = 10 << 30  # bytes that an installation needs at its height
NEEDS = (  # what XTuner asks for, bitsandbytes apart; pinned where its code or ours knows the version
    *("transformers==4.48.0", "mmengine==0.10.6", "bitsandbytes==0.50.2", "datasets==5.0.1", "peft==0.21.2"),
    *("einops", "loguru", "openpyxl", "scikit-image", "scipy", "sentencepiece", "tiktoken"),
    "transformers-stream-generator",
)
TRIED = "import xtuner.model, xtuner.dataset, xtuner.engine.runner"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with XTuner in it.

    Args:
        folder: where it lies; `python` is its interpreter.
        size: bytes on disk, when it was made.
    """

    folder: Path
    size: int

    @property
    def python(self) -> Path:
        return python_of(self.folder)


def default_folder() -> Path:
    """Where the environment lies: `$TWINLENS_XTUNER`, else in the cache folder."""
    given = os.environ.get(FOLDER)
    return Path(given).expanduser() if given else cache_folder() / f"xtuner-{VERSION}"


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_environment(folder: Path | None = None) -> Environment:
    """An environment that was installed to its end.

    Raises:
        ModelError: there is none.
    """
    folder = folder or default_folder()
    try:
        facts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return Environment(folder, int(facts["bytes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"--engine xtuner: no XTuner in {folder}; run `{INSTALL}`, or set {FOLDER} to where it is."
        ) from error


def install(folder: Path) -> Environment:
    """Make the environment, or go on where an interrupted installation stopped; one that is whole is left as it is.

    Raises:
        DeviceError: no Python that XTuner takes, too little disk, or a package cannot be had.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        with lock:
            if (folder / MARKER).exists():
                return find_environment(folder)
            return _install(folder)
    except OSError as error:
        raise DeviceError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --into."
        ) from error


def _install(folder: Path) -> Environment:
    from tuning.progress import ProgressBar

    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise DeviceError(f"{folder}: is not empty and no virtual environment; give another folder with --into.")
    if (free := shutil.disk_usage(folder.parent).free) < ROOM and not folder.exists():
        raise DeviceError(
            f"{folder}: {free / 2**30:.1f} GiB are free and the installation needs {ROOM >> 30}; free space or give "
            "another folder with --into."
        )
    pip = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    torch = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
    steps = (
        ("a virtual environment", [_python(), "-m", "venv", str(folder)]),
        (f"XTuner {VERSION}", [*pip, "--no-deps", f"xtuner=={VERSION}"]),
        ("torch and what else it needs", [*pip, *torch, *NEEDS]),
        ("trying it", [str(python_of(folder)), "-c", TRIED]),
    )
    with ProgressBar("installing", len(steps)) as counter:
        for what, command in steps:
            log.info("%s: %s", folder.name, what)
            _run(command, lambda line: counter.advance(0, line))
            counter.advance(1)
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    facts = {"xtuner": VERSION, "needs": [*torch, *NEEDS], "bytes": size, "made": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_atomically(folder / MARKER, json.dumps(facts, indent=2) + "\n")
    return Environment(folder, size)


def _python() -> str:
    """A Python that XTuner takes: ours, or else one on the path."""
    if sys.version_info < (3, 13):
        return sys.executable
    for name in ("python3.12", "python3.11", "python3.10"):
        if found := shutil.which(name):
            return found
    raise DeviceError(f"XTuner {VERSION} takes no Python newer than 3.12; install one, such as python3.12.")


def _run(command: list[str], note: Callable[[str], None]) -> None:
    """One step of the installation, its lines as notes; what it says last when it fails is the reason."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    last: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = [*last[-40:], line.strip()]
                if line.startswith(("Collecting", "Downloading", "Installing")):
                    note(line.strip()[:60])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = [line for line in last if line.startswith("ERROR") or "Error:" in line] or last or ["it says nothing"]
        raise DeviceError(
            f"installing XTuner stopped ({said[-1].removeprefix('ERROR: ')}); mend that and run the same again: what "
            "is there by then is kept."
        )
