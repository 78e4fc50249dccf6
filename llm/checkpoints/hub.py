"""Model downloads from Hugging Face and ModelScope: choose files, check size and disk, pin the commit."""

# pyright: reportMissingImports=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import errno
import logging
import re
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from tuning.errors import DeviceError, KitError, ModelError, first_line
from tuning.paths import cache_folder

log = logging.getLogger("twinlens")
_NAME = re.compile(r"(modelscope:)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_SETTINGS = (".json", ".model", ".jinja", ".txt")
_WEIGHTS = (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin", r".*\.safetensors")
_INSTALL_MODELSCOPE = 'pip install "modelscope>=1.30"'


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on a hub.

    Args:
        name: owner/model.
        revision: branch, tag or commit; None is the default branch.
        key: the key in the task file, for errors.
    """

    store: Literal["hub", "modelscope"]
    name: str
    revision: str | None
    key: str = "model"

    def __str__(self) -> str:
        prefix = "modelscope:" if self.store == "modelscope" else ""
        return f"{prefix}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model on a hub.

    Args:
        commit: None for ModelScope, whose client does not return it.
        sizes: file sizes in bytes, by path.
        folder: the local folder of the downloaded files.
    """

    commit: str | None
    sizes: Mapping[str, int]
    folder: Path

    def missing(self, weights: bool = True) -> dict[str, int]:
        """Sizes in bytes of the needed files that are not downloaded yet."""
        files = needed_files(self.sizes, weights)
        return {file: self.sizes[file] for file in files if not (self.folder / file).exists()}


def parse_remote(source: str, key: str = "model") -> RemoteModel | None:
    """Parse `owner/model`, `owner/model@revision` or `modelscope:owner/model`. None for a local path or other text."""
    found = _NAME.fullmatch(source)
    if not found or Path(source).expanduser().exists():
        return None
    return RemoteModel("modelscope" if found[1] else "hub", found[2], found[3], key)


def needed_files(files: Iterable[str], weights: bool) -> list[str]:
    """The files to download: config, tokenizer, and the weights in one format, safetensors before pickles.

    Code, other formats and subfolders are left out.
    """
    top = [file for file in files if "/" not in file]
    settings = [file for file in top if file.endswith(_SETTINGS) and not file.endswith(".index.json")]
    if not weights:
        return settings
    kinds = ([file for file in top if re.fullmatch(kind, file)] for kind in _WEIGHTS)
    chosen = next((kind for kind in kinds if kind), [])
    ending = Path(chosen[0]).suffix if chosen else None
    indices = (
        f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin") if Path(name).suffix == ending
    )
    return [*settings, *chosen, *(file for file in indices if file in top)]


def fetch(remote: RemoteModel, weights: bool = True) -> Path:
    """The local folder of a model. Missing files are downloaded; the log first shows their size and the free disk.

    Args:
        weights: False downloads only config and tokenizer.

    Raises:
        ModelError: no such model or revision, a login is needed, or the hub cannot be reached and files are missing.
        DeviceError: the disk is too small.
    """
    with _explain_errors(remote):
        listing = _list_files(remote)
        if missing := listing.missing(weights):
            log.info("%s: %s: downloading %s", remote.key, remote, _check_disk_space(remote, listing, missing))
            files = list(missing)
            if remote.store == "modelscope":
                from modelscope.hub.snapshot_download import snapshot_download

                folder = str(listing.folder)
                snapshot_download(remote.name, revision=remote.revision, local_dir=folder, allow_patterns=files)
            else:
                from huggingface_hub import snapshot_download

                snapshot_download(remote.name, revision=listing.commit, allow_patterns=files)
        return listing.folder


def describe_download(remote: RemoteModel) -> str:
    """What `fetch` would download.

    Raises:
        KitError: as `fetch`.
    """
    with _explain_errors(remote):
        listing = _list_files(remote)
        missing = listing.missing()
        return f"to download: {_check_disk_space(remote, listing, missing)}" if missing else "complete in the cache"


def pin_revision(remote: RemoteModel) -> RemoteModel:
    """The same model at the current commit of its revision; ModelScope's client does not return a commit.

    Raises:
        ModelError: as `fetch`.
    """
    if remote.store == "modelscope":
        return remote
    with _explain_errors(remote):
        return replace(remote, revision=_list_files(remote).commit)


def _list_files(remote: RemoteModel) -> Listing:
    """The files on the hub. If the hub cannot be reached, the files in the cache."""
    if remote.store == "modelscope":
        commit = None
        folder = cache_folder() / "modelscope" / remote.name.replace("/", "--")
        folder /= (remote.revision or "master").replace("/", "--")
    else:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        commit = HfApi().resolve_revision(remote.name, revision=remote.revision).resolved
        repo = repo_folder_name(repo_id=remote.name, repo_type="model")
        folder = Path(constants.HF_HUB_CACHE, repo, "snapshots", commit)
    try:
        sizes = _modelscope_sizes(remote.name, remote.revision) if commit is None else _hub_sizes(remote.name, commit)
    except Exception:  # each client has its own errors
        if not (folder / "config.json").exists():
            raise
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    return Listing(commit, sizes, folder)


def _hub_sizes(name: str, commit: str) -> dict[str, int]:
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = get_cached_repo_tree(name, revision=commit)
    except CachedRepoTreeNotFoundError:
        tree = HfApi().list_repo_tree(name, revision=commit)
    return {file.path: file.size for file in tree if isinstance(file, RepoFile)}


@cache
def _modelscope_sizes(name: str, revision: str | None) -> dict[str, int]:
    from modelscope.hub.api import HubApi

    found = HubApi().get_model_files(name, revision=revision, recursive=True)
    return {file["Path"]: int(file["Size"]) for file in found if file.get("Type") != "tree"}


def _check_disk_space(remote: RemoteModel, listing: Listing, missing: Mapping[str, int]) -> str:
    """The size and place of a download, for the log.

    Raises:
        DeviceError: the disk is too small.
    """
    from huggingface_hub import constants

    modelscope = remote.store == "modelscope"
    cache = listing.folder if modelscope else Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.absolute().parents) if place.exists())).free
    needed = sum(missing.values())
    if needed > free:
        raise DeviceError(
            f"{remote.key}: {remote}: the download needs {_size(needed)}, but {_size(free)} are free at {cache}; free "
            f"space, or set {'TWINLENS_CACHE' if modelscope else 'HF_HOME'} to a folder on another disk."
        )
    return f"{_size(needed)} in {len(missing)} files to {cache}, where {_size(free)} are free"


def _size(count: int) -> str:
    power, unit = (30, "GiB") if count >= 2**30 else (20, "MiB") if count >= 2**20 else (10, "KiB")
    return f"{count / 2**power:,.1f} {unit}"


@contextmanager
def _explain_errors(remote: RemoteModel) -> Generator[None, None, None]:
    """Turn errors of the hub's client into one sentence."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    where = f"{remote.key}: {remote}"
    modelscope = remote.store == "modelscope"
    reasons = {
        ImportError: f"ModelScope's client is not installed; run `{_INSTALL_MODELSCOPE}`",
        errors.GatedRepoError: "the owner must grant you access; accept the terms on the model's page, then log in "
        "with `hf auth login` or set HF_TOKEN",
        errors.RepositoryNotFoundError: "no such local folder, and the hub has no such model or it is private; check "
        "the name, or log in with `hf auth login`",
        errors.RevisionNotFoundError: "the model has no such revision; give a branch, a tag or a full commit",
        errors.HFValidationError: "not a valid name of a model on the hub; check it",
    }
    try:
        yield
    except KitError:
        raise
    except tuple(reasons) as error:
        reason = next(text for kind, text in reasons.items() if isinstance(error, kind))
        raise ModelError(f"{where}: {reason}.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DeviceError(f"{where}: the disk is full; free space and run it again.") from error
        if isinstance(error, errors.HfHubHTTPError):
            login = error.response.status_code in (401, 403)
            fix = "log in with `hf auth login`" if login else "try later, or give a local folder"
            raise ModelError(f"{where}: the hub refuses the download ({first_line(error)}); {fix}.") from error
        if not modelscope and not isinstance(error, OSError | HTTPError | errors.RevisionResolutionError):
            raise
        revision = f" --revision {remote.revision}" if remote.revision else ""
        command = f"hf download {remote.name}{revision} --local-dir FOLDER"
        if modelscope:
            command = f"modelscope download --model {remote.name}{revision} --local_dir FOLDER"
        raise ModelError(
            f"{where}: no such local folder, not complete in the cache, and cannot be downloaded "
            f"({first_line(error)}); check the name, run it again later (downloaded files are kept), or download it "
            f"elsewhere with `{command}` and give that folder."
        ) from error
