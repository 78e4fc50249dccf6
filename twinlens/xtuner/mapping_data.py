"""The data of an XTuner config, as that of a task: files, lengths, packing, template."""

import re
from typing import Any

from twinlens.xtuner.config_tree import ConfigTree, shown
from twinlens.xtuner.scope import datasets

# Rows that we know by their own keys, whatever function XTuner reads them with; None is its own format.
KNOWN_ROWS = (None, "alpaca_map_fn", "oasst1_map_fn", "openai_map_fn", "llava_map_fn")
FILE_KINDS = ("json", "parquet")
WORKERS = 32  # processes that map and pack, each its own share, unless map_num_proc says otherwise
PATCHES = 576  # of CLIP ViT-L/14 at 336 pixels, which every LLaVA config of XTuner takes


def text_data(tree: ConfigTree) -> dict[str, Any]:
    """`data` of a text task."""
    data: dict[str, Any] = {"files": _files(tree)}
    first, *others = datasets(tree)
    data["max_length"] = _alike(tree, first, others, "max_length", 2048)
    packs = tree.kind(first).startswith("process_") and _alike(tree, first, others, "pack_to_max_length", True)
    data["pack"] = bool(packs)
    if packs:
        isolated = _alike(tree, first, others, "use_varlen_attn", False)
        if isolated:
            tree.differ(f"{first}.use_varlen_attn", "rows are cut where a pack ends; here whole rows share one")
        data["packing"] = "isolated" if isolated else "xtuner"
        data["pack_workers"] = _alike(tree, first, others, "map_num_proc", WORKERS)
    return data


def image_data(tree: ConfigTree, tower: str) -> dict[str, Any]:
    """`data` of an image task, whose rows count their patches, where XTuner's `max_length` counts text alone."""
    first, *others = datasets(tree)
    _alike(tree, first, others, "max_length", 2048)
    text = tree.number(f"{first}.max_length", 2048)
    patches = patches_of(tower)
    if patches is None:
        patches = PATCHES
        tree.differ(f"{first}.max_length", f"text alone; {patches} patches are added, see data.max_length")
    if not _alike(tree, first, others, "pad_image_to_square", False):
        tree.differ(f"{first}.pad_image_to_square", "pictures are always padded to a square, nothing is cut off")
    return {"files": _files(tree), "max_length": int(text) + patches, "pack": False}


def picture_folder(tree: ConfigTree) -> str | None:
    """Where the pictures of every dataset lie."""
    first, *others = datasets(tree)
    return _alike(tree, first, others, "image_folder", None)


def template_of(tree: ConfigTree) -> str | None:
    """The name of the chat template, in XTuner's list."""
    first, *others = datasets(tree)
    path = "template_map_fn.template"
    if tree.below(f"{first}.{path}"):
        tree.differ(f"{first}.{path}", "a template of its own; the tokenizer's is taken, or one by name as `template`")
        return None
    for dataset in (first, *others):
        tree.take(f"{dataset}.template_map_fn.type")
    _alike(tree, first, others, path, None)
    return tree.name(f"{first}.{path}")


def patches_of(tower: str) -> int | None:
    """Patches that a tower makes of a picture, told by its name, such as clip-vit-large-patch14-336."""
    found = re.search(r"patch(\d+)-(\d+)", tower)
    return (int(found[2]) // int(found[1])) ** 2 if found else None


def _alike(tree: ConfigTree, first: str, others: list[str], key: str, default: Any) -> Any:
    """A value that all datasets should share: that of the first, and a note where another has its own."""
    value = tree.take(f"{first}.{key}", default)
    for other in others:
        if (own := tree.take(f"{other}.{key}", default)) != value:
            tree.differ(f"{other}.{key}", f"{shown(own)}; one task has one: {shown(value)}, that of the first dataset")
    return value


def _files(tree: ConfigTree) -> list[str]:
    files: list[str] = []
    for dataset in datasets(tree):
        if (kind := tree.kind(dataset)) == "MOSSSFTDataset":
            tree.differ(dataset, "rows of MOSS's own format are not read; convert them to messages")
            files += _paths(tree, f"{dataset}.data_file")
        elif kind == "LLaVADataset":
            _settle_rows(tree, dataset)
            files += _paths(tree, f"{dataset}.data_path")
        else:
            _settle_rows(tree, dataset)
            files += _loaded(tree, f"{dataset}.dataset")
    return files


def _settle_rows(tree: ConfigTree, dataset: str) -> None:
    path = f"{dataset}.dataset_map_fn"
    if (name := tree.name(path)) not in KNOWN_ROWS:
        tree.differ(path, f"{name}; rows that need it are not read here, convert them to messages")


def _loaded(tree: ConfigTree, source: str) -> list[str]:
    """The files that `load_dataset` is given, or the name that it fetches."""
    tree.kind(source)
    if (split := tree.take(f"{source}.split", "train")) != "train":
        tree.differ(f"{source}.split", f"{split}; files are read whole")
    name = tree.text(f"{source}.path") or tree.text(f"{source}.dataset_name")
    files = _paths(tree, f"{source}.data_files") if tree.has(f"{source}.data_files") else []
    if files and name not in FILE_KINDS:
        tree.differ(f"{source}.path", f"{name}: JSON and Parquet files are read; convert others")
    if not files and name is None:
        raise tree.fault(f"{source} names no data; write data_files=...")
    return files or [str(name)]


def _paths(tree: ConfigTree, path: str) -> list[str]:
    """Files at a path: one, several, or a dict of splits, of which `train` is taken."""
    if tree.below(path):
        path = f"{path}.train"
    value = tree.take(path)
    found = value if isinstance(value, list | tuple) else [value]
    if not found or not all(isinstance(each, str) for each in found):
        raise tree.fault(f"{path} is {shown(value)}, not a file; write the file's path in quotes")
    return list(found)
