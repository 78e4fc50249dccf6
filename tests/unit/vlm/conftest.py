"""Folders of tiny towers in the layout of the hub."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny_towers import MODEL_CFG, PREPROCESS_CFG, TEXT, VISION, as_open_clip
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full CLIP model with its image processor, as on a hub."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    edges: dict[str, Any] = {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}}
    CLIPImageProcessor(**edges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    size: Any = {"height": 42, "width": 42}
    SiglipImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision part of `clip_folder` in open_clip's layout."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(as_open_clip(CLIPVisionModel.from_pretrained(clip_folder)), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model in open_clip's list, with and without the fast GELU."""
    registry = {
        "tiny-quickgelu": MODEL_CFG,
        "tiny": {**MODEL_CFG, "quick_gelu": False},
    }
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, **registry})
    return "tiny-quickgelu"
