"""An XTuner config becomes the document of a task, and a line for each thing that does not carry over as it stands."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.internlm.weight_names import TARGET_MODULES
from twinlens.xtuner.configs.data import image_data, picture_folder, template_of, text_data
from twinlens.xtuner.configs.hf_trainer import map_trainer_training
from twinlens.xtuner.configs.reader import read_xtuner_config
from twinlens.xtuner.configs.schedule import map_training
from twinlens.xtuner.configs.scope import task_kind, trains_language, trains_tower
from twinlens.xtuner.configs.tree import TRAINER_CONFIG, ConfigTree, describe
from twinlens.xtuner.configs.unmapped import unmapped_lines


@dataclass(frozen=True, slots=True)
class MappedConfig:
    """What a config comes to.

    Args:
        document: a task's tree, as a YAML file would hold it.
        differences: a line for each thing that does not carry over as it stands, by its key.
    """

    document: dict[str, Any]
    differences: tuple[str, ...]


def map_config(file: Path) -> MappedConfig:
    """Read a config file and map it.

    Raises:
        ConfigError: it cannot be read, or trains what twinlens does not; says what it is.
    """
    config = read_xtuner_config(file)
    tree = ConfigTree(config)
    document = _text(tree) if task_kind(tree) == "text" else _image(tree)
    not_run = (f"{each.where}: `{each.source}` is not run" for each in config.skipped)
    return MappedConfig(document, (*tree.differences, *unmapped_lines(tree), *not_run))


def _text(tree: ConfigTree) -> dict[str, Any]:
    quant = _quant(tree)
    lora = _adapter(tree, tree.kind.lora, quant)
    by_trainer = tree.kind is TRAINER_CONFIG
    return {
        "model": _model(tree, tree.kind.language),
        "template": template_of(tree),
        "quant": quant,
        "lora": lora,
        "data": text_data(tree),
        **(map_trainer_training(tree, quantized=quant["bits"] < 16) if by_trainer else map_training(tree)),
    }


def _image(tree: ConfigTree) -> dict[str, Any]:
    tower, quant = _model(tree, "model.visual_encoder"), _quant(tree)
    tunes = trains_language(tree)
    document = {
        "stage": "tune" if tunes else "align",
        "model": _model(tree, tree.kind.language),
        "template": template_of(tree),
        "tower": tower,
        "start": tree.text("model.pretrained_pth"),
        "quant": quant,
        "data": image_data(tree, tower),
        "pictures": {"folder": picture_folder(tree)},
        **map_training(tree),
    }
    if tunes:
        document["lora"] = _adapter(tree, "model.llm_lora", quant)
    if tree.has("model.visual_encoder_lora"):
        document["tower_lora"] = _lora(tree, "model.visual_encoder_lora")
    elif trains_tower(tree):
        document["whole_tower"] = True
    return document


def _model(tree: ConfigTree, part: str) -> str:
    path = f"{part}.pretrained_model_name_or_path"
    name = tree.text(path)
    if not name:
        raise tree.error(f"{path} is missing; write a model's folder or name")
    return name


def _quant(tree: ConfigTree) -> dict[str, Any]:
    language = tree.kind.language
    path = f"{language}.quantization_config"
    four = tree.get(f"{path}.load_in_4bit", False) or tree.get(f"{language}.load_in_4bit", False)
    eight = tree.get(f"{path}.load_in_8bit", False) or tree.get(f"{language}.load_in_8bit", False)
    if four:
        if (kind := tree.get(f"{path}.bnb_4bit_quant_type", "nf4")) != "nf4":
            tree.note(f"{path}.bnb_4bit_quant_type", f"{describe(kind)}; nf4 is used")
        return {"bits": 4}
    return {"bits": 8 if eight else 16}


def _adapter(tree: ConfigTree, path: str, quant: dict[str, Any]) -> dict[str, Any] | None:
    """The language model's adapter; None where every weight is trained."""
    if tree.has(path):
        return _lora(tree, path)
    if (bits := quant["bits"]) < 16:
        raise tree.error(
            f"has no {path} and {bits}-bit weights, which cannot be trained in XTuner either; give it a LoRA, or take "
            "the quantization out"
        )
    stored = f"{tree.kind.language}.torch_dtype"
    if (kind := tree.short_name(stored)) not in (None, "float32"):
        tree.note(stored, f"{kind}; weights that are trained are float32 until they are saved")
    return None


def _lora(tree: ConfigTree, path: str) -> dict[str, Any]:
    if (kind := tree.type_name(path)) != "LoraConfig":
        tree.note(f"{path}.type", f"{kind or 'none'}; a LoRA is trained")
    if (bias := tree.get(f"{path}.bias", "none")) != "none":
        tree.note(f"{path}.bias", f"{describe(bias)}; biases are not trained")
    # PEFT's own defaults where the config says nothing.
    lora = {
        "rank": tree.get(f"{path}.r", 8),
        "alpha": tree.get(f"{path}.lora_alpha", 8),
        "dropout": tree.get(f"{path}.lora_dropout", 0.0),
    }
    targets = tree.get(f"{path}.target_modules")
    if isinstance(targets, list | tuple):
        split = (name for target in targets for name in TARGET_MODULES.get(str(target), (str(target),)))
        lora["targets"] = list(dict.fromkeys(split))
    elif targets not in (None, "all-linear"):
        tree.note(f"{path}.target_modules", f"{describe(targets)} is a pattern; every linear layer is adapted")
    return lora
