"""Convert an XTuner config to a task's YAML; list every difference between the two."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.internlm.weight_names import TARGET_MODULES
from twinlens.xtuner.configs.data import image_data, picture_folder, template_of, text_data
from twinlens.xtuner.configs.hf_trainer import map_trainer_training
from twinlens.xtuner.configs.reader import read_xtuner_config
from twinlens.xtuner.configs.schedule import map_training
from twinlens.xtuner.configs.scope import is_trained, task_kind
from twinlens.xtuner.configs.tree import TRAINER_CONFIG, ConfigTree, describe
from twinlens.xtuner.configs.unmapped import unmapped_lines


@dataclass(frozen=True, slots=True)
class MappedConfig:
    """Result of the mapping.

    Args:
        document: a task as a YAML file contains it.
        differences: a line for each setting that does not carry over unchanged, with its path.
    """

    document: dict[str, Any]
    differences: tuple[str, ...]


def map_config(file: Path) -> MappedConfig:
    """Read a config file and map it to a task.

    Raises:
        ConfigError: it cannot be read, or twinlens does not support its kind of training.
    """
    config = read_xtuner_config(file)
    tree = ConfigTree(config)
    document = _text(tree) if task_kind(tree) == "text" else _image(tree)
    not_run = (f"{each.where}: `{each.source}` is not run" for each in config.skipped)
    return MappedConfig(document, (*tree.differences, *unmapped_lines(tree), *not_run))


def _text(tree: ConfigTree) -> dict[str, Any]:
    bits = _quantization_bits(tree)
    lora = _language_lora(tree, tree.kind.lora, bits)
    by_trainer = tree.kind is TRAINER_CONFIG
    return {
        "model": _model(tree, tree.kind.language),
        "template": template_of(tree),
        "quant": {"bits": bits},
        "lora": lora,
        "data": text_data(tree),
        **(map_trainer_training(tree, quantized=bits < 16) if by_trainer else map_training(tree)),
    }


def _image(tree: ConfigTree) -> dict[str, Any]:
    tower, bits = _model(tree, "model.visual_encoder"), _quantization_bits(tree)
    tunes = is_trained(tree, "llm")
    document = {
        "stage": "tune" if tunes else "align",
        "model": _model(tree, tree.kind.language),
        "template": template_of(tree),
        "tower": tower,
        "start": tree.text("model.pretrained_pth"),
        "quant": {"bits": bits},
        "data": image_data(tree, tower),
        "pictures": {"folder": picture_folder(tree)},
        **map_training(tree),
    }
    if tunes:
        document["lora"] = _language_lora(tree, "model.llm_lora", bits)
    if tree.has("model.visual_encoder_lora"):
        document["tower_lora"] = _lora(tree, "model.visual_encoder_lora")
    elif is_trained(tree, "visual_encoder"):
        document["whole_tower"] = True
    return document


def _model(tree: ConfigTree, part: str) -> str:
    path = f"{part}.pretrained_model_name_or_path"
    name = tree.text(path)
    if not name:
        raise tree.error(f"{path} is missing; write a model's folder or name")
    return name


def _quantization_bits(tree: ConfigTree) -> int:
    """Bits of the language model's weights: 4, 8 or 16."""
    language = tree.kind.language
    path = f"{language}.quantization_config"
    four, eight = (
        tree.get(f"{path}.load_in_{bits}bit", False) or tree.get(f"{language}.load_in_{bits}bit", False)
        for bits in (4, 8)
    )
    if four and (kind := tree.get(f"{path}.bnb_4bit_quant_type", "nf4")) != "nf4":
        tree.note(f"{path}.bnb_4bit_quant_type", f"{describe(kind)}; nf4 is used")
    return 4 if four else 8 if eight else 16


def _language_lora(tree: ConfigTree, path: str, bits: int) -> dict[str, Any] | None:
    """LoRA settings of the language model; None for full fine-tuning."""
    if tree.has(path):
        return _lora(tree, path)
    if bits < 16:
        raise tree.error(
            f"has no {path} and {bits}-bit weights, which XTuner cannot train either; add a LoRA, or remove the "
            "quantization"
        )
    dtype = f"{tree.kind.language}.torch_dtype"
    if (kind := tree.short_name(dtype)) not in (None, "float32"):
        tree.note(dtype, f"{kind}; trained weights are float32 until they are saved")
    return None


def _lora(tree: ConfigTree, path: str) -> dict[str, Any]:
    if (kind := tree.type_name(path)) != "LoraConfig":
        tree.note(f"{path}.type", f"{kind or 'none'}; a LoRA is trained")
    if (bias := tree.get(f"{path}.bias", "none")) != "none":
        tree.note(f"{path}.bias", f"{describe(bias)}; biases are not trained")
    # Missing values have PEFT's defaults.
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
        tree.note(f"{path}.target_modules", f"{describe(targets)} is a pattern; every linear layer gets an adapter")
    return lora
