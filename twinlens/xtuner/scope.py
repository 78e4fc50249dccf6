"""What an XTuner config trains, and a sentence for each kind that twinlens does not train."""

import re
from pathlib import Path
from typing import Literal

from twinlens.xtuner.config_tree import ConfigTree

OTHER_METHODS = {
    "DPO": "trains on preferences (DPO); twinlens tunes on answers",
    "ORPO": "trains on preferences (ORPO); twinlens tunes on answers",
    "RewardModel": "trains a reward model; twinlens tunes on answers",
    "InternVL_V1_5": "tunes InternVL, whose tower and projector are of its own kind; twinlens tunes LLaVA",
}
TAKES_A_LORA = "twinlens trains adapters, so take a config with a LoRA"
# Families that publish model code of their own, by the names of their checkpoints; transformers has no class for them.
OWN_CODE = {
    r"baichuan": "Baichuan",
    r"chatglm": "ChatGLM",
    r"qwen-(1_8b|7b|14b|72b)": "Qwen 1",
    r"deepseek-moe": "DeepSeek-MoE",
    r"minicpm-": "MiniCPM 1 and 2",
}
DATASETS = ("process_hf_dataset", "process_ms_dataset", "LLaVADataset", "MOSSSFTDataset")


def settle_scope(tree: ConfigTree) -> Literal["text", "image"]:
    """Whether a config is of the text or the image path.

    Raises:
        ConfigError: it trains something else, or a model that transformers does not load by itself.
    """
    if tree.take("framework") is not None:
        raise tree.fault("hands over to transformers' Trainer; take the config of the same name without _hf")
    kind = tree.kind("model")
    if kind in OTHER_METHODS:
        raise tree.fault(OTHER_METHODS[kind])
    if kind not in ("SupervisedFinetune", "LLaVAModel"):
        raise tree.fault(f"trains {kind}, which twinlens does not know" if kind else "is no config that trains a model")
    _refuse_raw_text(tree)
    if kind == "SupervisedFinetune":
        if not tree.has("model.lora"):
            raise tree.fault(f"tunes every weight of the model; {TAKES_A_LORA}")
    else:
        _refuse_whole_parts(tree)
    _refuse_own_code(tree)
    for dataset in datasets(tree):
        if (name := tree.kind(dataset)) not in DATASETS:
            raise tree.fault(f"reads its data through {name or 'no dataset of XTuner'}; make it a file of messages")
    return "text" if kind == "SupervisedFinetune" else "image"


def datasets(tree: ConfigTree) -> list[str]:
    """The paths of the datasets that are trained on, in order.

    Raises:
        ConfigError: there is none.
    """
    path = "train_dataloader.dataset"
    if tree.kind(path) != "ConcatDataset":
        return [path]
    found = [f"{path}.datasets.{name}" for name in tree.below(f"{path}.datasets")]
    if not found:
        raise tree.fault(f"{path}.datasets holds no dataset; write the datasets to train on")
    return found


def _refuse_raw_text(tree: ConfigTree) -> None:
    for dataset in datasets(tree):
        if tree.name(f"{dataset}.dataset_map_fn") == "pretrain_map_fn":
            raise tree.fault("trains on raw text (pretraining); twinlens tunes on questions and answers")


def _refuse_whole_parts(tree: ConfigTree) -> None:
    language, tower = tree.has("model.llm_lora"), tree.has("model.visual_encoder_lora")
    frozen, frozen_tower = tree.take("model.freeze_llm", False), tree.take("model.freeze_visual_encoder", False)
    if not language and not frozen:
        raise tree.fault(f"tunes every weight of the language model; {TAKES_A_LORA}")
    if not tower and not frozen_tower:
        raise tree.fault(f"tunes every weight of the vision tower; {TAKES_A_LORA}")
    if tower and not language:
        raise tree.fault("tunes the tower without the language model; twinlens tunes the tower beside it")


def _refuse_own_code(tree: ConfigTree) -> None:
    name = tree.text("model.llm.pretrained_model_name_or_path") or ""
    if Path(name).expanduser().exists():
        return  # its own config tells, when it is checked
    for pattern, family in OWN_CODE.items():
        if re.match(pattern, name.rpartition("/")[2].lower()):
            raise tree.fault(f"tunes {family}, which needs code of its own; twinlens runs none")
