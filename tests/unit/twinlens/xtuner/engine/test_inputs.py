"""Inputs of XTuner: rows equal those of twinlens's own engine; transformers 4.48 can read the models."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_vlm import make_towers

from tuning.errors import DataError, ModelError
from tuning.settings import Optim
from tuning.training.packing import MicroBatches
from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX, EncodedSample
from twinlens.xtuner.engine.inputs import ARROW, check_model, write_arrow_rows, write_language_model
from vlm.export.layouts import save_tower
from vlm.towers.registry import load_tower

PATCHES = 4
Packing = Literal["isolated", "xtuner"] | None
LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=12)


def sample(length: int, first: int, picture: int | None = None) -> EncodedSample:
    ids = np.arange(first, first + length, dtype=np.int32)
    if picture is not None:
        ids = np.concatenate([ids[:1], np.full(PATCHES, IMAGE_TOKEN_INDEX, np.int32), ids[1:]])
    supervised = np.arange(len(ids)) >= len(ids) - 1
    return EncodedSample(ids, supervised, "row 1", picture_ids=() if picture is None else (picture,))


def batches(samples: list[EncodedSample], packing: Packing, micro_batch: int, epochs: float = 1) -> MicroBatches:
    rows, none = np.arange(len(samples), dtype=np.int32), np.asarray([], np.int32)
    return MicroBatches(
        samples, rows, none, repeat=1, ratio=0, micro_batch=micro_batch, max_length=32, packing=packing, workers=1,
        pad_id=0, seed=0, epochs=epochs,
    )  # fmt: skip


def written(folder: Path) -> list[dict]:
    with pa.ipc.open_stream((folder / ARROW).read_bytes()) as stream:
        return stream.read_all().to_pylist()


@given(
    lengths=LENGTHS,
    packing=st.sampled_from([None, "isolated", "xtuner"]),
    micro_batch=st.integers(1, 5),
    accumulate=st.integers(1, 4),
)
def test_rows_equal_the_micro_batches_of_the_own_engine(tmp_path_factory, lengths, packing, micro_batch, accumulate):
    folder = tmp_path_factory.mktemp("rows") / "rows"
    ours = batches([sample(length, 100 * number) for number, length in enumerate(lengths)], packing, micro_batch, 2)
    optim = Optim(steps=1, micro_batch=micro_batch, accumulate=accumulate)
    rows = write_arrow_rows(ours, optim, folder, None)
    given_rows = written(folder)
    assert rows.iters == ours.count() and len(given_rows) == rows.iters * micro_batch
    for number, batch in enumerate(ours.stream()):
        theirs = given_rows[number * micro_batch : (number + 1) * micro_batch]
        for row, (ids, labels) in enumerate(zip(batch.input_ids, batch.labels, strict=True)):
            length = len(theirs[row]["input_ids"])
            assert theirs[row]["input_ids"] == ids[:length].tolist() and not ids[length:].any()
            assert theirs[row]["labels"] == labels[:length].tolist()
        assert all(set(row["labels"]) == {IGNORE_INDEX} for row in theirs[len(batch.labels) :]), (
            "filler rows have no labels"
        )
    counts = [rows.of_step(step) for step in range(rows.steps)]
    assert sum(iters for iters, _, _ in counts) == rows.iters
    assert sum(tokens for _, tokens, _ in counts) == sum(batch.num_tokens for batch in ours.stream())
    assert sum(labels for _, _, labels in counts) == sum(batch.num_labels for batch in ours.stream())


def test_a_picture_has_one_image_token(tmp_path):
    picture = tmp_path / "a.png"
    rows = write_arrow_rows(
        batches([sample(5, 100, 0), sample(3, 200)], None, 1), Optim(steps=1, accumulate=1), tmp_path / "rows",
        [picture],
    )  # fmt: skip
    seen, plain = sorted(written(tmp_path / "rows"), key=lambda row: row["image"] is None)
    assert seen["input_ids"] == [100, IMAGE_TOKEN_INDEX, 101, 102, 103, 104]
    assert seen["labels"] == [IGNORE_INDEX] * 5 + [104]
    assert (seen["image"], plain["image"]) == (str(picture), None)
    assert sorted(rows.tokens) == [3, 5 + PATCHES], "tokens count what the model computes"


def test_two_pictures_in_a_row_are_refused(tmp_path):
    first = sample(5, 100, 0)
    both = EncodedSample(first.ids, first.loss_mask, "rows.jsonl, row 7", picture_ids=(0, 1))
    with pytest.raises(DataError, match=r"row 7: has 2 pictures"):
        write_arrow_rows(batches([both], None, 1), Optim(steps=1), tmp_path / "rows", [Path("a"), Path("b")])


def test_a_config_has_the_keys_of_both_versions(tmp_path, tiny_model):
    source = tmp_path / "source"
    source.mkdir()
    values = json.loads((tiny_model / "config.json").read_text())
    values["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    values["auto_map"] = {"AutoConfig": "evil.Config"}
    (source / "config.json").write_text(json.dumps(values))
    (source / "evil.py").write_text("raise SystemExit")
    (source / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())
    folder = tmp_path / "made"
    write_language_model(str(source), folder)
    made = json.loads((folder / "config.json").read_text())
    assert made["rope_theta"] == 1e6
    assert made["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}
    assert made["torch_dtype"] == "bfloat16"
    assert made["tie_word_embeddings"] is False, "defaults of version 5 are written"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"], "no code"
    assert "auto_map" not in made


def test_a_tower_has_weight_names_of_version_4(tmp_path):
    tower = load_tower(str(make_towers(tmp_path / "towers")["clip"]), torch.device("cpu"), torch.float32)
    folder = tmp_path / "tower"
    save_tower(tower, folder, torch.float32, "2GB")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert all(name.startswith("vision_model.") for name in weights.keys())  # noqa: SIM118
        assert "vision_model.embeddings.class_embedding" in weights.keys()  # noqa: SIM118
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["crop_size"] == {"height": 28, "width": 28} and settings["size"] == {"shortest_edge": 32}
    assert (settings["resample"], settings["do_center_crop"], settings["image_std"][0]) == (3, True, 0.26862954)


@pytest.mark.parametrize(("kind", "sentence"), [("internlm2", "InternLM's own layout"), ("gpt2", "not gpt2")])
def test_models_that_xtuner_cannot_train_are_refused(tmp_path, tiny_model, kind, sentence):
    values = json.loads((tiny_model / "config.json").read_text()) | {"model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=sentence):
        check_model(str(tmp_path))
