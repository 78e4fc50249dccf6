"""Names of towers, and errors for wrong names, folders and files: open_clip and transformers."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hub_server import HubServer
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from tiny_towers import MODEL_CFG, PREPROCESS_CFG, loaded
from torch import Tensor, nn

from tuning.errors import ModelError
from vlm.towers.registry import tower_facts

# --- open_clip names


def test_local_weights_of_a_known_model(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, file)
    assert loaded(f"open_clip:{known_model}/{file}").fingerprint == loaded(f"open_clip:{open_clip_folder}").fingerprint


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, but OpenAI's files use it
def test_openais_archive_needs_the_fast_gelu(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    class Archived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = _build_vision_tower(16, MODEL_CFG["vision_cfg"], True)  # pyright: ignore[reportArgumentType]

        def forward(self, pixels: Tensor) -> Tensor:
            return self.visual(pixels)

    model = Archived().eval()
    model.load_state_dict(load_file(open_clip_folder / "open_clip_model.safetensors"))
    file = tmp_path / "ViT.pt"
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 42, 42), check_trace=False), file)
    with pytest.raises(ModelError, match=f"write open_clip:tiny-quickgelu/{file}"):
        tower_facts(f"open_clip:tiny/{file}")
    assert loaded(f"open_clip:{known_model}/{file}").fingerprint == loaded(f"open_clip:{open_clip_folder}").fingerprint


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ViT-L-14-336/openai", "fast GELU; write open_clip:ViT-L-14-336-quickgelu/openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "plain GELU; write open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-L-14-337/openai", "open_clip has no model ViT-L-14-337; the nearest are ViT-L-14-336"),
        ("ViT-B-32/opnai", "has no weights opnai; the nearest are openai"),
        ("ViT-B-32", "the weights are not given; write open_clip:NAME/TAG"),
        ("ViT-B-32//nowhere/weights.pt", "no such file /nowhere/weights.pt"),
        ("/nowhere", "open_clip_config.json is missing"),
    ],
)
def test_wrong_open_clip_names(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        tower_facts(f"open_clip:{name}")


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: dict[str, Any]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(
        ModelError, match=r"cannot be downloaded \(no route to host\).*open_clip:RN50//path/to/weights.pt"
    ):
        loaded("open_clip:RN50/openai")


def test_weights_of_another_model_are_refused(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    save_file({**weights, "visual.conv1.weight": torch.zeros(32, 3, 7, 7)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"not the weights of this model .*conv1\.weight"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.safetensors")
    save_file({"text.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="no tensors named visual"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.safetensors")
    (tmp_path / "weights.pt").write_text("<html>")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.pt")


def test_local_weights_with_unknown_normalization_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ModelError, match="ViT-L-14 was published with several normalizations"):
        tower_facts(f"open_clip:ViT-L-14/{tmp_path}/weights.pt")


def test_a_folder_whose_activation_contradicts_its_files(open_clip_folder: Path, tmp_path: Path) -> None:
    config = {"model_cfg": {**MODEL_CFG, "quick_gelu": False}, "preprocess_cfg": PREPROCESS_CFG}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no weights"):
        tower_facts(f"open_clip:{tmp_path}")
    file = "open_clip_model.safetensors"
    (tmp_path / file).write_bytes((open_clip_folder / file).read_bytes())
    assert tower_facts(f"open_clip:{tmp_path}").patches == 9
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "quick_gelu"}}))
    with pytest.raises(ModelError, match=r"set model_cfg\.quick_gelu to true"):
        tower_facts(f"open_clip:{tmp_path}")


# --- transformers folders


def test_paths_without_a_tower(tmp_path: Path, tiny_model: Path, clip_folder: Path) -> None:
    with pytest.raises(ModelError, match="'llama' is not supported as a vision tower; a tower is a CLIP or SigLIP"):
        tower_facts(str(tiny_model))
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        tower_facts(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        tower_facts(str(clip_folder / "config.json"))
    with pytest.raises(ModelError, match="no such folder"):
        tower_facts("./nowhere")
    with pytest.raises(ModelError, match="write open_clip:ViT-B-32/WEIGHTS"):
        tower_facts("ViT-B-32")


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("config.json", {"model_type": "qwen2_5_vl"}, "'qwen2_5_vl' is not supported as a vision tower"),
        ("config.json", {"model_type": "siglip2"}, "NaFlex"),
        ("config.json", None, "not valid JSON"),
        ("config.json", {"vision_config": {"patch_size": 0}}, "patch_size 0 is not between 1 and image_size 224"),
        ("config.json", {"vision_config": {"num_attention_heads": "many"}}, "expected int, got str"),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 56}, "crop_size": 56},
            "56 pixels, and the tower needs 42",
        ),
        ("preprocessor_config.json", {"size": {"height": 42, "width": 56}}, "size must give one side"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "image_mean must be three numbers"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale must be true"),
        ("preprocessor_config.json", "", "preprocessor_config.json is missing"),
        ("model.safetensors", "", "no weights"),
    ],
)
def test_broken_folders(
    file: str, change: dict[str, Any] | str | None, sentence: str, clip_folder: Path, tmp_path: Path
) -> None:
    for source in clip_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    if isinstance(change, dict):
        document = {**json.loads((tmp_path / file).read_text()), **change}
        (tmp_path / file).write_text(json.dumps(document))
    elif change is None:
        (tmp_path / file).write_text("{")
    else:
        (tmp_path / file).unlink()
    with pytest.raises(ModelError, match=sentence):
        tower_facts(str(tmp_path))


def test_weights_cut_short_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    for source in clip_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes()[:9])
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_bytes((clip_folder / "preprocessor_config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(str(tmp_path))


def test_missing_tensors_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    for source in clip_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.fc1" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"2 of its tensors are missing, such as encoder\.layers\.1\.mlp\.fc1\.bias"):
        loaded(tmp_path)


def test_a_hub_that_cannot_be_reached(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.unreachable(monkeypatch)
    with pytest.raises(
        ModelError,
        match=r"tower: owner/clip: no such local folder, not complete in the cache, and cannot be downloaded",
    ):
        tower_facts("owner/clip")
