"""XTuner datasets in other row formats: the files are listed, with a note that rows must be converted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xtuner_config import IMAGE, INTERN_REPO

from twinlens.xtuner.configs.mapping import MappedConfig, map_config

Write = Callable[[str, str], Path]
PACKED = "train_dataloader['dataset']"


def mapped(write: Write, text: str) -> MappedConfig:
    return map_config(write("config.py", text))


def test_folders_of_messages(write: Write) -> None:
    found = mapped(write, INTERN_REPO)
    assert found.document["template"] == "internlm2_chat"
    assert found.document["data"] == {
        "files": ["sft"],
        "max_length": 8192,
        "pack": True,
        "packing": "isolated",
        "pack_workers": 1,
    }
    (line,) = [line for line in found.differences if "convert them to messages" in line]
    assert line.startswith("train_dataloader.dataset.dataset_cfg: ")


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ("model.update(use_varlen_attn=False)", "packing", "xtuner"),
        (f"{PACKED}['packed_length'] = None", "max_length", 8192),
        (f"{PACKED}['dataset_cfg'].update(processed_dataset_dict_path='done', folder=None)", "files", ["done"]),
    ],
)
def test_how_folders_are_packed(write: Write, change: str, key: str, expected: Any) -> None:
    assert mapped(write, f"{INTERN_REPO}\n{change}\n").document["data"][key] == expected


def test_folders_of_tokens_take_the_template_of_the_samples(write: Write) -> None:
    tokens = f"""
from xtuner.dataset.intern_repo import load_intern_repo_tokenized_dataset
custom_hooks[0].update(prompt_template=PROMPT_TEMPLATE.internlm_chat)
{PACKED}['dataset_cfg'] = dict(type=load_intern_repo_tokenized_dataset, folder="sft", min_length=50, file_type=".bin")
"""
    found = mapped(write, INTERN_REPO + tokens)
    assert (found.document["template"], found.document["data"]["files"]) == ("internlm_chat", ["sft"])
    assert [line for line in found.differences if "of tokens" in line and "convert them to messages" in line]
    assert [
        line
        for line in found.differences
        if line.startswith("train_dataloader.dataset.dataset_cfg.min_length: XTuner drops shorter")
    ]


def test_refcoco_rows(write: Write) -> None:
    boxes = """
from xtuner.dataset.refcoco_json import InvRefCOCOJsonDataset, RefCOCOJsonDataset
llava = train_dataloader["dataset"]
boxes = dict(llava, type=RefCOCOJsonDataset)
inverse = dict(llava, type=InvRefCOCOJsonDataset, data_path="b.json")
train_dataloader.update(dataset=dict(type="ConcatDataset", datasets=[boxes, inverse, llava]))
"""
    found = mapped(write, IMAGE + boxes)
    assert found.document["data"]["files"] == ["rows.json", "b.json", "rows.json"]
    noted = [
        line.partition(": ")[0].rpartition(".")[2] for line in found.differences if "convert them to messages" in line
    ]
    assert noted == ["RefCOCOJsonDataset", "InvRefCOCOJsonDataset"]
