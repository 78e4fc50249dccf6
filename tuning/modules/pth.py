"""Pickled checkpoints (.pth, .pt, .bin): read without running code, written atomically.

XTuner's files pickle their log beside the weights: objects of mmengine and numpy. Those few names are let through as
stand-ins that hold nothing; a file that names anything else is refused before anything of it is made.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuning.atomic import atomic_writer
from tuning.errors import DeviceError, ModelError

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"


class _Placeholder:
    """Stands in for whatever a log or an optimizer pickled."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_NUMPY = ("multiarray._reconstruct", "multiarray.scalar")
_PLACEHOLDER_GLOBALS = (
    "builtins.getattr",  # mmengine's buffers name their methods with it
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
    """What a `.pth`, `.pt` or `.bin` file holds; weights stay on disk until they are used.

    Args:
        path: the file, or a folder that DeepSpeed wrote.

    Raises:
        ModelError: it cannot be read, holds something else, or names what weights do not need.
    """
    file = path / DEEPSPEED_FILE if path.is_dir() else path
    stand_ins: list[Any] = [(_Placeholder, name) for name in _PLACEHOLDER_GLOBALS]
    try:
        mapped = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals(stand_ins):
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{file}: names {named.group(1)}, which weights do not need, so nothing of it was run; get its weights "
                "as .safetensors."
            ) from error
        raise _unreadable(file, "no weights in it that can be read safely") from error
    except Exception as error:  # the unpickler raises whatever broken bytes lead it to
        raise _unreadable(file, str(error).strip().partition("\n")[0] or type(error).__name__) from error
    if not isinstance(held, Mapping):
        raise _unreadable(file, f"a {type(held).__name__} where weights by name were expected")
    return dict(held)


def state_dict_in(held: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name: mmengine's, DeepSpeed's, or one that is nothing else.

    Raises:
        ModelError: there are none, or ZeRO-3 left them in parts.
    """
    inner = next((held[key] for key in ("state_dict", "module") if isinstance(held.get(key), Mapping)), held)
    weights = {str(name): value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise _unreadable(path, "no weights in it")
    if not any(value.numel() for value in weights.values()):
        raise ModelError(f"{path}: ZeRO-3 left its weights in parts; gather them first, with DeepSpeed's zero_to_fp32.")
    return weights


def write_pth(held: object, path: Path) -> None:
    """Pickle tensors, in what holds them, into a file that is there whole or not at all.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    try:
        with atomic_writer(path) as stream:
            torch.save(held, stream)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):  # of a write that failed torch makes an error of its own
            raise
        reason = error.__context__.strerror
        raise DeviceError(f"{path}: cannot be written ({reason}); free space or choose another place.") from error


def _unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path}: cannot be read as a checkpoint ({reason.rstrip('.')}); get the file again.")
