"""What a run gives to XTuner: rows in tokens, and models as the transformers of its environment reads them.

The rows are encoded and laid out by us, so that both engines see the same tokens in the same order; XTuner's chat
templates and tokenizers are left out of it. transformers 4.48 reads a config of version 5 without complaint and takes
the wrong rotary base from it, so a config is written that says things in both ways, beside links to the weights.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.checkpoints.shards import find_weight_index, weight_files
from llm.internlm.loading import is_internlm
from llm.loading import load_model_config, model_folder
from tuning.atomic import atomic_writer, write_atomically
from tuning.errors import ConfigError, DataError, ModelError
from tuning.modules.pth import write_pth
from tuning.settings import Optim
from tuning.training.packing import MicroBatches
from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX, EncodedSample
from vlm.checkpoints.reading import LlavaParts
from vlm.projector import Projector
from vlm.towers.tower import Tower

KNOWN = ("llama", "mistral", "qwen2")  # what XTuner 0.2.0 trains and we have tried
ARROW = "data-00000-of-00001.arrow"
ROWS_A_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """The rows of a whole run, as XTuner takes them: one after the other, so many a micro-batch.

    Args:
        tokens: int64[N], of each row; `labels` of them are learned from.
        micro_batch: rows in a micro-batch, `accumulate` of which make a step.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    micro_batch: int
    accumulate: int

    @property
    def iters(self) -> int:
        """Micro-batches of the run."""
        return -(-len(self.tokens) // self.micro_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.iters // self.accumulate)

    def of_step(self, step: int) -> tuple[int, int, int]:
        """Micro-batches, tokens and labels of a step (from 0)."""
        size = self.micro_batch * self.accumulate
        part = slice(step * size, (step + 1) * size)
        iters = min(self.accumulate, self.iters - step * self.accumulate)
        return iters, int(self.tokens[part].sum()), int(self.labels[part].sum())


def check_model(name: str) -> None:
    """Look at a language model before anything is made for it.

    Raises:
        ModelError: XTuner would need code from the checkpoint for it, or does not know it.
    """
    if is_internlm(model_folder(name, weights=False)):
        raise ModelError(
            f"model: {name}: is in InternLM's own layout, for which XTuner runs code out of the checkpoint; write it "
            "as Llama's with `twinlens convert internlm` and give that."
        )
    if (kind := load_model_config(name).model_type) not in KNOWN:
        raise ModelError(f"model: {name}: XTuner's engine here takes {', '.join(KNOWN)} and not {kind}; train without.")


def write_language_model(name: str, folder: Path) -> Path:
    """A language model for transformers 4.48: its config said in both ways, its weights as links."""
    source = model_folder(name).resolve()
    folder.mkdir(parents=True)
    values = load_model_config(name).to_dict()
    write_atomically(folder / "config.json", json.dumps(_for_version_4(values), indent=2, default=str) + "\n")
    index = find_weight_index(source)
    for file in [*weight_files(source), *([index] if index else [])]:
        (folder / file.name).symlink_to(file)
    return folder


def _for_version_4(values: dict[str, Any]) -> dict[str, Any]:
    rope = dict(values.get("rope_parameters") or {})
    theta, kind = rope.pop("rope_theta", None), rope.pop("rope_type", "default")
    said = {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
        "torch_dtype": str(values.get("dtype") or "float32").removeprefix("torch."),
    }
    left_out = ("auto_map", "rope_parameters", "dtype")  # no code of the checkpoint's runs
    return {key: value for key, value in values.items() if key not in left_out} | said


def write_clip_tower(tower: Tower, folder: Path) -> Path:
    """A CLIP tower with the tensor names of transformers 4.48, and its image processor's settings in full."""
    from safetensors.torch import save

    folder.mkdir(parents=True)
    network: Any = tower.network
    values = network.config.to_dict() | {"architectures": ["CLIPVisionModel"], "torch_dtype": "float32"}
    write_atomically(folder / "config.json", json.dumps(values, indent=2, default=str) + "\n")
    state = {f"vision_model.{name}": value.float().contiguous() for name, value in network.state_dict().items()}
    with atomic_writer(folder / "model.safetensors") as stream:
        stream.write(save(state, metadata={"format": "pt"}))
    wanted = tower.preprocess
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": wanted.resize},
        "resample": int(wanted.resample),
        "do_center_crop": True,
        "crop_size": {"height": wanted.size, "width": wanted.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(wanted.mean),
        "image_std": list(wanted.std),
    }
    write_atomically(folder / "preprocessor_config.json", json.dumps(settings, indent=2) + "\n")
    return folder


def check_projector_only(start: LlavaParts) -> LlavaParts:
    """What a run starts from, which must be a projector alone.

    Raises:
        ConfigError: there is an adapter in it.
    """
    if start.language is not None or start.tower is not None:
        raise ConfigError(
            f"start: {start.source}: holds an adapter, and with --engine xtuner a run starts from a projector alone; "
            "give a run of stage align."
        )
    return start


def write_initial_projector(projector: Projector, file: Path) -> Path:
    """The projector that the run begins with, as a checkpoint of XTuner's."""
    named = {
        f"projector.model.{number}.{part}": value.clone()
        for number, layer in ((0, projector.linear_1), (2, projector.linear_2))
        for part, value in layer.state_dict().items()
    }
    write_pth({"state_dict": named}, file)
    return file


def write_arrow_rows(
    batches: MicroBatches, optim: Optim, folder: Path, patches: int, pictures: Sequence[Path]
) -> ArrowRows:
    """The run's sequences in order, as a folder that `datasets.load_from_disk` maps into memory.

    Args:
        patches: places that a picture takes in our rows; in XTuner's it takes one.

    Raises:
        DataError: a row has several pictures.
    """
    folder.mkdir(parents=True)
    numbers = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", numbers), ("labels", numbers), ("image", pa.string())])
    if not patches:
        schema = schema.remove(2)
    tokens: list[int] = []
    labels: list[int] = []
    with atomic_writer(folder / ARROW) as stream, pa.ipc.new_stream(stream, schema) as writer:
        rows = _rows(batches, optim.micro_batch, patches, pictures)
        while group := list(islice(rows, ROWS_A_BATCH)):
            tokens += [row.tokens for row in group]
            labels += [int((row.labels[1:] != IGNORE_INDEX).sum()) for row in group]
            columns = [_lists([row.ids for row in group]), _lists([row.labels for row in group])]
            images = [pa.array([row.image for row in group], pa.string())] if patches else []
            writer.write_batch(pa.record_batch([*columns, *images], schema=schema))
    state = {
        "_data_files": [{"filename": ARROW}], "_fingerprint": "twinlens", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    write_atomically(folder / "state.json", json.dumps(state) + "\n")
    write_atomically(folder / "dataset_info.json", "{}\n")
    return ArrowRows(np.asarray(tokens), np.asarray(labels), optim.micro_batch, optim.accumulate)


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence: int32[T] ids and labels, and the picture in it; `tokens` counts a picture's patches."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    image: str | None
    tokens: int


def _rows(batches: MicroBatches, micro_batch: int, patches: int, pictures: Sequence[Path]) -> Iterator[_Row]:
    """The sequences; a micro-batch that an epoch leaves short is filled with one that teaches nothing."""
    for sequences in batches.sequences():
        rows = [_row(sequence, patches, pictures) for sequence in sequences]
        silenced = replace(rows[-1], labels=np.full_like(rows[-1].labels, IGNORE_INDEX), tokens=0)
        yield from [*rows, *[silenced] * (micro_batch - len(rows))]


def _row(samples: Sequence[EncodedSample], patches: int, pictures: Sequence[Path]) -> _Row:
    """Samples in one sequence; the places of a picture become one."""
    ids = np.concatenate([sample.ids for sample in samples])
    labels = np.where(np.concatenate([sample.loss_mask for sample in samples]), ids, IGNORE_INDEX)
    seen = [number for sample in samples for number in sample.picture_ids]
    if len(seen) > 1:
        raise DataError(f"{samples[0].where}: has {len(seen)} pictures, and XTuner takes one a row; split the row.")
    image = str(pictures[seen[0]].resolve()) if seen else None
    kept = np.ones(len(ids), np.bool_)
    kept[np.flatnonzero(ids == IMAGE_TOKEN_INDEX)[1:]] = False
    return _Row(ids[kept], labels[kept].astype(np.int32), image, len(ids))


def _lists(parts: Sequence[NDArray[np.int32]]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts)))
