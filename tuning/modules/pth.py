"""Pickled checkpoints (.pth, .pt, .bin): read without running code, written atomically.

XTuner's files also contain its log: pickled objects of mmengine and numpy. These few names are replaced by empty
placeholders. A file with any other name is refused before an object is created.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuning.atomic import atomic_writer
from tuning.errors import DeviceError, ModelError, first_line

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"


class _Placeholder:
    """Takes the place of any object of a log or an optimizer."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_NUMPY = ("multiarray._reconstruct", "multiarray.scalar")
_PLACEHOLDER_GLOBALS = (
    "builtins.getattr",  # used by mmengine's buffers for their methods
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
)


def read_pth(path: Path) -> dict[str, Any]:
    """The content of a `.pth`, `.pt` or `.bin` file. Weights stay on disk until they are used.

    Args:
        path: the file, or a folder that DeepSpeed wrote.

    Raises:
        ModelError: it cannot be read, is no mapping, or contains objects other than weights.
    """
    file = path / DEEPSPEED_FILE if path.is_dir() else path
    placeholders: list[Any] = [(_Placeholder, name) for name in _PLACEHOLDER_GLOBALS]
    try:
        with torch.serialization.safe_globals(placeholders):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{file}: names {named.group(1)}, which weights do not need, so nothing of it was run; "
                "get the weights as .safetensors."
            ) from error
        raise _unreadable(file, "no weights in it that can be read safely") from error
    except Exception as error:  # broken bytes can make the unpickler raise any exception
        raise _unreadable(file, first_line(error)) from error
    if not isinstance(content, Mapping):
        raise _unreadable(file, f"a {type(content).__name__} where weights by name were expected")
    return dict(content)


def state_dict_in(content: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name: of mmengine's layout, of DeepSpeed's, or of a plain state dict.

    Raises:
        ModelError: it contains no weights, or ZeRO-3 divided them into parts.
    """
    inner = next((content[key] for key in ("state_dict", "module") if isinstance(content.get(key), Mapping)), content)
    weights = {str(name): value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise _unreadable(path, "no weights in it")
    if not any(value.numel() for value in weights.values()):
        raise ModelError(f"{path}: ZeRO-3 left its weights in parts; first gather them with DeepSpeed's zero_to_fp32.")
    return weights


def write_pth(content: object, path: Path) -> None:
    """Pickle tensors, in a mapping or a list, into a file that is complete or does not exist.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    try:
        with atomic_writer(path) as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):  # torch raises its own error if a write fails
            raise
        reason = error.__context__.strerror
        raise DeviceError(f"{path}: cannot be written ({reason}); free space or choose another place.") from error


def _unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path}: cannot be read as a checkpoint ({reason.rstrip('.')}); get the file again.")
