"""Inputs of XTuner's trainer: tokenized rows, and a model folder that transformers 4.48 loads.

twinlens encodes and packs the rows, so that both engines train on the same tokens in the same order. XTuner's chat
templates and tokenizers are not used. transformers 4.48 takes a wrong rotary base from a config of version 5, without
an error; the config that is written has the keys of both versions.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.checkpoints.shards import find_weight_index, weight_files
from llm.export.saving import with_transformers4_rope
from llm.internlm.loading import is_internlm
from llm.loading import load_model_config, model_folder
from tuning.atomic import atomic_writer, write_atomically
from tuning.errors import DataError, ModelError
from tuning.settings import Optim
from tuning.training.packing import MicroBatches
from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX, EncodedSample

SUPPORTED_MODELS = ("llama", "mistral", "qwen2")  # tested with XTuner 0.2.0
ARROW = "data-00000-of-00001.arrow"
BATCH_ROWS = 1000  # rows of an Arrow record batch


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Sizes of the rows of a run. Row n belongs to micro-batch n // micro_batch.

    Args:
        tokens: int64[N], tokens of each row.
        labels: int64[N], labelled tokens of each row.
        micro_batch: rows of a micro-batch.
        accumulate: micro-batches of an optimizer step.
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
        """Number of micro-batches, tokens and labelled tokens of a step; the first step is 0."""
        size = self.micro_batch * self.accumulate
        part = slice(step * size, (step + 1) * size)
        iters = min(self.accumulate, self.iters - step * self.accumulate)
        return iters, int(self.tokens[part].sum()), int(self.labels[part].sum())


def check_model(name: str) -> None:
    """Check the config of a language model before any input is written.

    Raises:
        ModelError: XTuner needs code from the checkpoint for it, or XTuner does not support it here.
    """
    if is_internlm(model_folder(name, weights=False)):
        raise ModelError(
            f"model: {name}: has InternLM's own layout, for which XTuner runs code from the checkpoint; convert it to "
            "Llama's layout with `twinlens convert internlm` and train that model."
        )
    if (kind := load_model_config(name).model_type) not in SUPPORTED_MODELS:
        raise ModelError(
            f"model: {name}: --engine xtuner supports {', '.join(SUPPORTED_MODELS)}, not {kind}; omit --engine."
        )


def write_language_model(name: str, folder: Path) -> None:
    """Write the config of a language model for transformers 4.48, and links to its weights."""
    source = model_folder(name).resolve()
    folder.mkdir()
    config = with_transformers4_rope(load_model_config(name).to_dict())
    config["torch_dtype"] = str(config.pop("dtype", None) or "float32").removeprefix("torch.")
    config.pop("auto_map", None)  # no code from the checkpoint runs
    write_atomically(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")
    index = find_weight_index(source)
    for file in [*weight_files(source), *([index] if index else [])]:
        (folder / file.name).symlink_to(file)


def write_arrow_rows(batches: MicroBatches, optim: Optim, folder: Path, pictures: Sequence[Path] | None) -> ArrowRows:
    """Write the sequences of a run, in order, as a folder for `datasets.load_from_disk`.

    Args:
        pictures: files by number; None for a text run. A picture has many image tokens in twinlens and one in XTuner.

    Raises:
        DataError: a row has several pictures.
    """
    folder.mkdir()
    numbers = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", numbers), ("labels", numbers), ("image", pa.string())])
    if pictures is None:
        schema = schema.remove(2)
    tokens: list[int] = []
    labels: list[int] = []
    with atomic_writer(folder / ARROW) as stream, pa.ipc.new_stream(stream, schema) as writer:
        rows = _rows(batches, optim.micro_batch, pictures or [])
        while group := list(islice(rows, BATCH_ROWS)):
            tokens += [row["tokens"] for row in group]
            labels += [int((row["labels"][1:] != IGNORE_INDEX).sum()) for row in group]
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema))
    state = {
        "_data_files": [{"filename": ARROW}], "_fingerprint": "twinlens", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    write_atomically(folder / "state.json", json.dumps(state) + "\n")
    write_atomically(folder / "dataset_info.json", "{}\n")
    return ArrowRows(np.asarray(tokens), np.asarray(labels), optim.micro_batch, optim.accumulate)


def _rows(batches: MicroBatches, micro_batch: int, pictures: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row for each sequence; a short last micro-batch of an epoch is filled with rows without labels."""
    for sequences in batches.sequences():
        rows = [_row(sequence, pictures) for sequence in sequences]
        filler = rows[-1] | {"labels": np.full_like(rows[-1]["labels"], IGNORE_INDEX), "tokens": 0}
        yield from [*rows, *[filler] * (micro_batch - len(rows))]


def _row(samples: Sequence[EncodedSample], pictures: Sequence[Path]) -> dict[str, Any]:
    """One sequence: int32[T] ids and labels with one image token for its picture; `tokens` counts all image tokens."""
    ids = np.concatenate([sample.ids for sample in samples])
    labels = np.where(np.concatenate([sample.loss_mask for sample in samples]), ids, IGNORE_INDEX)
    numbers = [number for sample in samples for number in sample.picture_ids]
    if len(numbers) > 1:
        raise DataError(
            f"{samples[0].where}: has {len(numbers)} pictures, and XTuner takes one for each row; split the row."
        )
    kept = np.ones(len(ids), np.bool_)
    kept[np.flatnonzero(ids == IMAGE_TOKEN_INDEX)[1:]] = False
    return {
        "input_ids": ids[kept],
        "labels": labels[kept],
        "image": str(pictures[numbers[0]].resolve()) if numbers else None,
        "tokens": len(ids),
    }
