"""What an XTuner config trains, and a sentence for each kind that twinlens does not train."""

import re
from pathlib import Path
from typing import Literal

from twinlens.xtuner.configs.tree import MMENGINE_CONFIG, TRAINER_CONFIG, ConfigTree

UNSUPPORTED_MODELS = {
    "DPO": "trains on preferences (DPO); twinlens tunes on answers",
    "ORPO": "trains on preferences (ORPO); twinlens tunes on answers",
    "RewardModel": "trains a reward model; twinlens tunes on answers",
    "InternVL_V1_5": "tunes InternVL, whose tower and projector are of its own kind; twinlens tunes LLaVA",
}
# Families that publish model code of their own, by the names of their checkpoints; transformers has no class for them.
REMOTE_CODE_FAMILIES = {
    r"baichuan": "Baichuan",
    r"chatglm": "ChatGLM",
    r"qwen-(1_8b|7b|14b|72b)": "Qwen 1",
    r"deepseek-moe": "DeepSeek-MoE",
    r"minicpm-": "MiniCPM 1 and 2",
}
PACKED_INTERN_REPO = "build_packed_dataset"
DATASET_TYPES = (
    *("process_hf_dataset", "process_ms_dataset", "LLaVADataset"),
    *("MOSSSFTDataset", "RefCOCOJsonDataset", "InvRefCOCOJsonDataset"),
    *("load_intern_repo_tokenized_dataset", "load_intern_repo_untokenized_dataset"),
)


def task_kind(tree: ConfigTree) -> Literal["text", "image"]:
    """Whether a config is of the text or the image path.

    Raises:
        ConfigError: it trains something else, or a model that transformers does not load by itself.
    """
    tree.text("framework")
    kind = tree.type_name("model")
    if kind in UNSUPPORTED_MODELS:
        raise tree.error(UNSUPPORTED_MODELS[kind])
    if not kind:
        raise tree.error("is no config that trains a model")
    if tree.kind is TRAINER_CONFIG and not kind.endswith("ForCausalLM"):
        raise tree.error(
            f"hands {kind} to transformers' Trainer; write AutoModelForCausalLM.from_pretrained as its type"
        )
    if tree.kind is MMENGINE_CONFIG and kind not in ("SupervisedFinetune", "LLaVAModel"):
        raise tree.error(f"trains {kind}, which twinlens does not know")
    _refuse_raw_text(tree)
    if kind == "LLaVAModel":
        _refuse_tower_alone(tree)
    _refuse_own_code(tree)
    for dataset in datasets(tree):
        if (name := tree.type_name(row_dataset(tree, dataset))) not in DATASET_TYPES:
            raise tree.error(f"reads its data through {name or 'no dataset of XTuner'}; make it a file of messages")
    return "image" if kind == "LLaVAModel" else "text"


def trains_language(tree: ConfigTree) -> bool:
    """Whether the language model of a LLaVA is trained, by an adapter or as a whole."""
    frozen = tree.get("model.freeze_llm", False)
    return tree.has("model.llm_lora") or not frozen


def trains_tower(tree: ConfigTree) -> bool:
    """Whether the tower of a LLaVA is trained, by an adapter or as a whole."""
    frozen = tree.get("model.freeze_visual_encoder", False)
    return tree.has("model.visual_encoder_lora") or not frozen


def datasets(tree: ConfigTree) -> list[str]:
    """The paths of the datasets that are trained on, in order.

    Raises:
        ConfigError: there is none.
    """
    path = tree.kind.dataset
    if tree.type_name(path) != "ConcatDataset":
        return [path]
    found = [f"{path}.datasets.{name}" for name in tree.keys(f"{path}.datasets")]
    if not found:
        raise tree.error(f"{path}.datasets holds no dataset; write the datasets to train on")
    return found


def row_dataset(tree: ConfigTree, dataset: str) -> str:
    """The path of what reads a dataset's rows: the dataset's own, or that of what it packs."""
    return f"{dataset}.dataset_cfg" if tree.type_name(dataset) == PACKED_INTERN_REPO else dataset


def _refuse_raw_text(tree: ConfigTree) -> None:
    for dataset in datasets(tree):
        if tree.short_name(f"{dataset}.dataset_map_fn") == "pretrain_map_fn":
            raise tree.error("trains on raw text (pretraining); twinlens tunes on questions and answers")
        if not tree.get(f"{dataset}.do_dataset_tokenization", True):
            raise tree.error("trains on rows that are tokens already; twinlens tunes on questions and answers")


def _refuse_tower_alone(tree: ConfigTree) -> None:
    language, tower = trains_language(tree), trains_tower(tree)
    if tower and not language:
        raise tree.error("tunes the tower without the language model; twinlens tunes the tower beside it")


def _refuse_own_code(tree: ConfigTree) -> None:
    name = tree.text(f"{tree.kind.language}.pretrained_model_name_or_path") or ""
    if Path(name).expanduser().exists():
        return  # its own config tells, when it is checked
    for pattern, family in REMOTE_CODE_FAMILIES.items():
        if re.match(pattern, name.rpartition("/")[2].lower()):
            raise tree.error(f"tunes {family}, which needs code of its own; twinlens runs none")
