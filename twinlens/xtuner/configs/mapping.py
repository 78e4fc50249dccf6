"""An XTuner config becomes the document of a task, and a line for each thing that does not carry over as it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.internlm.weight_names import TARGET_MODULES
from twinlens.xtuner.configs.data import image_data, picture_folder, template_of, text_data
from twinlens.xtuner.configs.hf_trainer import trainer_training
from twinlens.xtuner.configs.reader import read_config
from twinlens.xtuner.configs.schedule import training
from twinlens.xtuner.configs.scope import settle_scope, trains_language, trains_tower
from twinlens.xtuner.configs.tree import TRAINER, ConfigTree, shown
from twinlens.xtuner.configs.unmapped import rest


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a config comes to.

    Args:
        document: a task's tree, as a YAML file would hold it.
        differs: a line for each thing that does not carry over as it stands, by its key.
    """

    document: dict[str, Any]
    differs: tuple[str, ...]


def map_config(file: Path) -> Mapped:
    """Read a config file and map it.

    Raises:
        ConfigError: it cannot be read, or trains what twinlens does not; says what it is.
    """
    config = read_config(file)
    tree = ConfigTree(config)
    document = _text(tree) if settle_scope(tree) == "text" else _image(tree)
    not_run = (f"{each.where}: `{each.source}` is not run" for each in config.skipped)
    return Mapped(document, (*tree.differs, *rest(tree), *not_run))


def _text(tree: ConfigTree) -> dict[str, Any]:
    quant = _quant(tree)
    lora = _adapter(tree, tree.layout.lora, quant)
    by_trainer = tree.layout is TRAINER
    return {
        "model": _model(tree, tree.layout.language),
        "template": template_of(tree),
        "quant": quant,
        "lora": lora,
        "data": text_data(tree),
        **(trainer_training(tree, quantized=quant["bits"] < 16) if by_trainer else training(tree)),
    }


def _image(tree: ConfigTree) -> dict[str, Any]:
    tower, quant = _model(tree, "model.visual_encoder"), _quant(tree)
    tunes = trains_language(tree)
    document = {
        "stage": "tune" if tunes else "align",
        "model": _model(tree, tree.layout.language),
        "template": template_of(tree),
        "tower": tower,
        "start": tree.text("model.pretrained_pth"),
        "quant": quant,
        "data": image_data(tree, tower),
        "pictures": {"folder": picture_folder(tree)},
        **training(tree),
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
        raise tree.fault(f"{path} is missing; write a model's folder or name")
    return name


def _quant(tree: ConfigTree) -> dict[str, Any]:
    language = tree.layout.language
    path = f"{language}.quantization_config"
    four = tree.take(f"{path}.load_in_4bit", False) or tree.take(f"{language}.load_in_4bit", False)
    eight = tree.take(f"{path}.load_in_8bit", False) or tree.take(f"{language}.load_in_8bit", False)
    if four:
        if (kind := tree.take(f"{path}.bnb_4bit_quant_type", "nf4")) != "nf4":
            tree.differ(f"{path}.bnb_4bit_quant_type", f"{shown(kind)}; nf4 is used")
        return {"bits": 4}
    return {"bits": 8 if eight else 16}


def _adapter(tree: ConfigTree, path: str, quant: dict[str, Any]) -> dict[str, Any] | None:
    """The language model's adapter; None where every weight is trained."""
    if tree.has(path):
        return _lora(tree, path)
    if (bits := quant["bits"]) < 16:
        raise tree.fault(
            f"has no {path} and {bits}-bit weights, which cannot be trained in XTuner either; give it a LoRA, or take "
            "the quantization out"
        )
    stored = f"{tree.layout.language}.torch_dtype"
    if (kind := tree.name(stored)) not in (None, "float32"):
        tree.differ(stored, f"{kind}; weights that are trained are float32 until they are saved")
    return None


def _lora(tree: ConfigTree, path: str) -> dict[str, Any]:
    if (kind := tree.kind(path)) != "LoraConfig":
        tree.differ(f"{path}.type", f"{kind or 'none'}; a LoRA is trained")
    if (bias := tree.take(f"{path}.bias", "none")) != "none":
        tree.differ(f"{path}.bias", f"{shown(bias)}; biases are not trained")
    # PEFT's own defaults where the config says nothing.
    lora = {
        "rank": tree.take(f"{path}.r", 8),
        "alpha": tree.take(f"{path}.lora_alpha", 8),
        "dropout": tree.take(f"{path}.lora_dropout", 0.0),
    }
    targets = tree.take(f"{path}.target_modules")
    if isinstance(targets, list | tuple):
        split = (name for target in targets for name in TARGET_MODULES.get(str(target), (str(target),)))
        lora["targets"] = list(dict.fromkeys(split))
    elif targets not in (None, "all-linear"):
        tree.differ(f"{path}.target_modules", f"{shown(targets)} is a pattern; every linear layer is adapted")
    return lora
