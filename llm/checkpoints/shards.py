"""Weight shards of a model folder: lazy tensors, weight index, writing shard by shard."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuning.errors import ModelError
from tuning.modules.pth import read_pth, state_dict_in

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read on demand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def find_weight_index(folder: Path) -> Path | None:
    """The weight index that transformers would read, if any: safetensors before pickles, one file before an index."""
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).exists():
            return None
        if (folder / f"{name}.index.json").exists():
            return folder / f"{name}.index.json"
    return None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model that transformers would read, or its shards without an index.

    Raises:
        ModelError: there are none, or a file in the index is missing.
    """
    if (index := find_weight_index(folder)) is not None:
        shards = sorted(set(read_weight_index(index).values()))
        if missing := [name for name in shards if not (folder / name).exists()]:
            raise ModelError(f"{index}: {missing[0]} is missing ({len(missing)} in all); finish the download.")
        return [folder / name for name in shards]
    for pattern in (SAFETENSORS, PICKLED, "model-*.safetensors", "pytorch_model-*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{folder}: no weights (*.safetensors) in this folder; finish the download.")


def read_weight_index(index: Path) -> dict[str, str]:
    """File name by weight name; all files are in the folder of the index.

    Raises:
        ModelError: not a weight index, or it names files in other folders.
    """
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        odd = next((file for file in places.values() if Path(file).name != file), None)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a weight index ({error}); download the model again.") from error
    if odd is not None:
        raise ModelError(f"{index}: {odd} is not a file in the same folder; download the model again.")
    return places


def lazy_weights(folder: Path) -> dict[str, LazyTensor]:
    """Every weight of a model folder by name. Only names and shapes are read now.

    Raises:
        ModelError: a file is missing or broken, or a pickle contains code.
    """
    return {name: weight for file in weight_files(folder) for name, weight in lazy_file_weights(file).items()}


@contextmanager
def with_weight_index(folder: Path) -> Iterator[Path]:
    """The folder itself, or a temporary folder with links to its files and the missing weight index.

    Raises:
        ModelError: as `lazy_weights`.
    """
    files = weight_files(folder)
    if files[0].name in (SAFETENSORS, PICKLED) or find_weight_index(folder) is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        linked = Path(temporary)
        for file in folder.iterdir():
            (linked / file.name).symlink_to(file.resolve())
        places = {weight: file.name for file in files for weight in lazy_file_weights(file)}
        kind = SAFETENSORS if files[0].suffix == ".safetensors" else PICKLED
        (linked / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        yield linked


def lazy_from_tensor(tensor: Tensor) -> LazyTensor:
    """A tensor that is in memory or memory-mapped."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def lazy_cast(weight: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """The same tensor in another dtype, cast when read."""
    return LazyTensor(weight.shape, dtype, lambda: weight.read().to(dtype))


def check_shapes(
    found: Mapping[str, LazyTensor | Tensor], wanted: Mapping[str, Tensor], source: object, fix: str
) -> None:
    """Compare weight names and shapes with those of a model.

    Args:
        source: of the weights, for errors; `fix`: what the user should do.

    Raises:
        ModelError: a weight is missing, unexpected, or of another shape.
    """
    other_shape = {name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape}
    for what, names in (
        ("is missing", wanted.keys() - found.keys()),
        ("does not belong to this model", found.keys() - wanted.keys()),
        ("has another shape", other_shape),
    ):
        if names:
            raise ModelError(f"{source}: {min(names)} {what} ({len(names)} in all); {fix}.")


def write_weights(weights: Mapping[str, LazyTensor], folder: Path, max_shard_size: str) -> None:
    """Write safetensors files of at most `max_shard_size` and their index; one shard is in memory at a time."""
    shapes = {
        name: torch.empty(weight.shape, dtype=weight.dtype, device="meta") for name, weight in sorted(weights.items())
    }
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: weights[name].read().detach().cpu().contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{SAFETENSORS}.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def lazy_file_weights(file: Path) -> dict[str, LazyTensor]:
    """Every weight of a safetensors or `.bin` file by name.

    Raises:
        ModelError: the file is missing or broken, or a pickle contains code.
    """
    if file.suffix == ".bin":
        return {name: lazy_from_tensor(tensor) for name, tensor in state_dict_in(read_pth(file), file).items()}
    found: dict[str, LazyTensor] = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(name)
                found[name] = LazyTensor(tuple(part.get_shape()), part[:0].dtype, partial(_read_tensor, file, name))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors ({error}); download the file again.") from error
    return found


def _read_tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)
