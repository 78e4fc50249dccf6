"""Hub downloads: models by name from Hugging Face or ModelScope; size check, disk check, pinned commit."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import errno
import logging
import re
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llm.checkpoints import modelscope
from tuning.errors import DeviceError, KitError, ModelError, first_line

log = logging.getLogger("twinlens")
_NAME = re.compile(r"(modelscope:)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_SETTINGS = (".json", ".model", ".jinja", ".txt")
_WEIGHTS = (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin", r".*\.safetensors")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on a hub.

    Args:
        name: owner/model.
        revision: branch, tag or commit; None is the default branch.
        key: the task's key, for errors.
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
        commit: None if the hub does not tell it.
        sizes: file sizes in bytes, by path.
    """

    commit: str | None
    sizes: Mapping[str, int]


def parse_remote(source: str, key: str = "model") -> RemoteModel | None:
    """The model that `owner/model`, `owner/model@revision` or `modelscope:owner/model` names; None for a local path or
    another string."""
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
    taken = next((kind for kind in kinds if kind), [])
    index = [f"{start}.index.json" for start in ("model.safetensors", "pytorch_model.bin")]
    ending = Path(taken[0]).suffix if taken else None
    return [*settings, *taken, *(file for file in index if file in top and f"{ending}." in file)]


def fetch(remote: RemoteModel, weights: bool = True) -> Path:
    """The local folder of a model; missing files are downloaded, after the log says their size and the free disk.

    Args:
        weights: False for config and tokenizer alone.

    Raises:
        ModelError: no such model or revision, a login is needed, or the hub is unreachable and the cache incomplete.
        DeviceError: the disk is too small.
    """
    with _explain_errors(remote):
        listing = _list_files(remote)
        files = needed_files(listing.sizes, weights)
        missing = _missing(remote, listing, files)
        if missing:
            log.info("%s: %s: fetching %s", remote.key, remote, _check_disk_space(remote, missing))
        if remote.store == "modelscope":
            return modelscope.download(remote.name, remote.revision, files)
        from huggingface_hub import snapshot_download

        revision = remote.revision if missing else listing.commit
        return Path(
            snapshot_download(remote.name, revision=revision, allow_patterns=files, local_files_only=not missing)
        )


def describe_download(remote: RemoteModel) -> str:
    """What `fetch` would download.

    Raises:
        KitError: as `fetch`.
    """
    with _explain_errors(remote):
        listing = _list_files(remote)
        missing = _missing(remote, listing, needed_files(listing.sizes, weights=True))
        return f"to be fetched, {_check_disk_space(remote, missing)}" if missing else "in the cache, complete"


def pin_revision(remote: RemoteModel) -> RemoteModel:
    """The same model at the current commit of its revision; ModelScope's client tells no commit.

    Raises:
        ModelError: as `fetch`.
    """
    if remote.store == "modelscope":
        return remote
    with _explain_errors(remote):
        return replace(remote, revision=_list_files(remote).commit)


def _list_files(remote: RemoteModel) -> Listing:
    """The files on the hub; from the cache if it is at that commit, or if the hub is unreachable."""
    if remote.store == "modelscope":
        return Listing(None, modelscope.list_files(remote.name, remote.revision))
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cached = _cached_listing(remote)
    if cached is not None and cached.commit == remote.revision:
        return cached
    try:
        info = HfApi().model_info(remote.name, revision=remote.revision, files_metadata=True)
    except (HTTPError, OfflineModeIsEnabled) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        if cached is None or refused:
            raise
        log.info("%s: %s: the hub cannot be reached; taking commit %s of the cache", remote.key, remote, cached.commit)
        return cached
    return Listing(info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()})


def _cached_listing(remote: RemoteModel) -> Listing | None:
    """The cached files of a revision: the hub's own list, or the files on disk if an older client saved no list."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    config = try_to_load_from_cache(remote.name, "config.json", revision=remote.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        sizes = {file.path: file.size for file in get_cached_repo_tree(remote.name, revision=remote.revision)}
    except CachedRepoTreeNotFoundError:
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    return Listing(folder.name, sizes)


def _missing(remote: RemoteModel, listing: Listing, files: Iterable[str]) -> dict[str, int]:
    """Sizes in bytes of the files that are not cached."""
    from huggingface_hub import try_to_load_from_cache

    def here(file: str) -> bool:
        if remote.store == "modelscope":
            return (modelscope.folder_of(remote.name, remote.revision) / file).exists()
        return isinstance(try_to_load_from_cache(remote.name, file, revision=listing.commit), str)

    return {file: listing.sizes[file] for file in files if not here(file)}


def _check_disk_space(remote: RemoteModel, missing: Mapping[str, int]) -> str:
    """The size and place of a download, for the log.

    Raises:
        DeviceError: the disk is too small.
    """
    from huggingface_hub import constants

    modelscopes = remote.store == "modelscope"
    cache = modelscope.folder_of(remote.name, remote.revision) if modelscopes else Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.absolute().parents) if place.exists())).free
    needed = sum(missing.values())
    if needed > free:
        raise DeviceError(
            f"{remote.key}: {remote}: {_size(needed)} are to be fetched and {_size(free)} are free at {cache}; free "
            f"some, or set {'TWINLENS_CACHE' if modelscopes else 'HF_HOME'} to a folder on another disk."
        )
    return f"{_size(needed)} in {len(missing)} files to {cache}, where {_size(free)} are free"


def _size(count: int) -> str:
    power, unit = (30, "GiB") if count >= 2**30 else (20, "MiB") if count >= 2**20 else (10, "KiB")
    return f"{count / 2**power:,.1f} {unit}"


@contextmanager
def _explain_errors(remote: RemoteModel) -> Generator[None, None, None]:
    """Turn errors of the hub client into one sentence."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    where = f"{remote.key}: {remote}"
    try:
        yield
    except KitError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{where}: its owner lets in only who asked: accept the terms on the model's page, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{where}: no such folder here, and the hub has no such model or it is private; check the name, or log in "
            "with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{where}: the model has no such revision; give a branch, a tag or a whole commit.") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{where}: no name that a hub can have ({first_line(error)}); check it.") from error
    except (OSError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DeviceError(f"{where}: the disk is full; free some and run it again.") from error
        if isinstance(error, errors.HfHubHTTPError):
            login = error.response.status_code in (401, 403)
            mend = "log in with `hf auth login`" if login else "try later, or give a local folder"
            raise ModelError(f"{where}: the hub refuses it ({first_line(error)}); {mend}.") from error
        command = f"hf download {remote.name}{f' --revision {remote.revision}' if remote.revision else ''}"
        raise ModelError(
            f"{where}: no such folder here, not whole in the cache, and not to be had from the hub "
            f"({first_line(error)}); run it again later (files that have come stay), or give the folder that "
            f"`{command} --local-dir FOLDER` makes elsewhere."
        ) from error
