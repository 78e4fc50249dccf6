"""Find what an XTuner config trains; refuse kinds of training that twinlens does not support."""

import re
from pathlib import Path
from typing import Literal

from twinlens.xtuner.configs.tree import MMENGINE_CONFIG, TRAINER_CONFIG, ConfigTree

UNSUPPORTED_MODELS = {
    "": "is not a config that trains a model",
    "DPO": "trains on preferences (DPO); twinlens trains on answers",
    "ORPO": "trains on preferences (ORPO); twinlens trains on answers",
    "RewardModel": "trains a reward model; twinlens trains on answers",
    "InternVL_V1_5": "trains InternVL, which has another tower and projector; twinlens trains LLaVA",
}
# Checkpoint names of families with their own model code, which transformers does not include.
REMOTE_CODE_FAMILIES = {
    r"baichuan": "Baichuan",
    r"chatglm": "ChatGLM",
    r"qwen-(1_8b|7b|14b|72b)": "Qwen 1",
    r"deepseek-moe": "DeepSeek-MoE",
    r"minicpm-": "MiniCPM 1 and 2",
}
PACKED_INTERN_REPO = "build_packed_dataset"
TOKENS, TEXTS = "load_intern_repo_tokenized_dataset", "load_intern_repo_untokenized_dataset"
# Datasets of XTuner: the argument that names the files, and the row format if twinlens does not read it.
DATASETS = {
    "process_hf_dataset": ("dataset", None),
    "process_ms_dataset": ("dataset", None),
    "LLaVADataset": ("data_path", None),
    "MOSSSFTDataset": ("data_file", "rows of MOSS"),
    "RefCOCOJsonDataset": ("data_path", "rows of RefCOCO (phrase to box)"),
    "InvRefCOCOJsonDataset": ("data_path", "rows of RefCOCO (box to phrase)"),
    TOKENS: ("folder", "folders of tokens for InternLM's own trainer"),
    TEXTS: ("folder", "folders of messages for InternLM's own trainer"),
}


def task_kind(tree: ConfigTree) -> Literal["text", "image"]:
    """Whether a config becomes a text task or an image task.

    Raises:
        ConfigError: it trains something else, or a model that needs its own code.
    """
    tree.text("framework")
    kind = tree.type_name("model")
    if kind in UNSUPPORTED_MODELS:
        raise tree.error(UNSUPPORTED_MODELS[kind])
    if tree.kind is TRAINER_CONFIG and not kind.endswith("ForCausalLM"):
        raise tree.error(
            f"gives {kind} to transformers' Trainer; write AutoModelForCausalLM.from_pretrained as its type"
        )
    if tree.kind is MMENGINE_CONFIG and kind not in ("SupervisedFinetune", "LLaVAModel"):
        raise tree.error(f"trains {kind}, which twinlens does not support")
    for dataset in datasets(tree):
        if tree.short_name(f"{dataset}.dataset_map_fn") == "pretrain_map_fn":
            raise tree.error("trains on raw text (pretraining); twinlens trains on answers")
        if not tree.get(f"{dataset}.do_dataset_tokenization", True):
            raise tree.error("trains on tokenized rows; twinlens trains on conversations")
    image = kind == "LLaVAModel"
    if image and is_trained(tree, "visual_encoder") and not is_trained(tree, "llm"):
        raise tree.error("trains the tower without the language model; twinlens trains a tower only together with it")
    name = tree.text(f"{tree.kind.language}.pretrained_model_name_or_path") or ""
    for pattern, family in REMOTE_CODE_FAMILIES.items():
        # The config of a local model is read later, when the task is checked.
        if re.match(pattern, name.rpartition("/")[2].lower()) and not Path(name).expanduser().exists():
            raise tree.error(f"trains {family}, which needs its own model code; twinlens runs no code from checkpoints")
    for dataset in datasets(tree):
        if (name := tree.type_name(row_dataset(tree, dataset))) not in DATASETS:
            raise tree.error(f"has data of type {name or 'None'}, which is not supported; convert the data to messages")
    return "image" if image else "text"


def is_trained(tree: ConfigTree, part: Literal["llm", "visual_encoder"]) -> bool:
    """Whether a part of a LLaVA is trained, as an adapter or fully."""
    frozen = tree.get(f"model.freeze_{part}", False)
    return tree.has(f"model.{part}_lora") or not frozen


def datasets(tree: ConfigTree) -> list[str]:
    """The paths of the training datasets, in order.

    Raises:
        ConfigError: there is none.
    """
    path = tree.kind.dataset
    if tree.type_name(path) != "ConcatDataset":
        return [path]
    found = [f"{path}.datasets.{name}" for name in tree.keys(f"{path}.datasets")]
    if not found:
        raise tree.error(f"{path}.datasets has no dataset; write the datasets to train on")
    return found


def row_dataset(tree: ConfigTree, dataset: str) -> str:
    """The path of the dataset that reads the rows: the dataset itself, or the one that it packs."""
    return f"{dataset}.dataset_cfg" if tree.type_name(dataset) == PACKED_INTERN_REPO else dataset
