"""ModelScope downloads through its own client (optional package), into the kit's cache folder."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tuning.errors import ModelError, first_line
from tuning.paths import cache_folder

INSTALL = 'pip install "modelscope>=1.30"'


def folder_of(name: str, revision: str | None) -> Path:
    """The local folder of a model."""
    return cache_folder() / "modelscope" / name.replace("/", "--") / (revision or "master").replace("/", "--")


@cache
def list_files(name: str, revision: str | None) -> dict[str, int]:
    """File sizes in bytes by path; those of the local folder if ModelScope is unreachable.

    Raises:
        ModelError: the package is missing, no such model, or ModelScope is unreachable and nothing is cached.
    """
    try:
        with _explain_errors(name):
            from modelscope.hub.api import HubApi  # pyright: ignore[reportMissingImports]

            found = HubApi().get_model_files(name, revision=revision, recursive=True)
            return {file["Path"]: int(file["Size"]) for file in found if file.get("Type") != "tree"}
    except ModelError:
        folder = folder_of(name, revision)
        if not (folder / "config.json").exists():
            raise
        return {file.name: file.stat().st_size for file in folder.iterdir()}


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Download the missing files.

    Raises:
        ModelError: the package is missing, or the transfer failed.
    """
    folder = folder_of(name, revision)
    if all((folder / file).exists() for file in files):
        return folder
    with _explain_errors(name):
        from modelscope.hub.snapshot_download import snapshot_download  # pyright: ignore[reportMissingImports]

        snapshot_download(name, revision=revision, local_dir=str(folder), allow_patterns=list(files))
    return folder


@contextmanager
def _explain_errors(name: str) -> Generator[None, None, None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(f"model: modelscope:{name}: ModelScope's client is not installed; run `{INSTALL}`.") from error
    except Exception as error:  # the client has errors of its own, and its HTTP library's, and plain ones
        raise ModelError(
            f"model: modelscope:{name}: cannot be fetched ({first_line(error)}); check the name, run it again, or give "
            f"the folder that `modelscope download --model {name} --local_dir FOLDER` makes."
        ) from error
