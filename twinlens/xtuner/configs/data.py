"""Convert the dataset part of an XTuner config to a task's `data` settings."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import re
from typing import Any

from twinlens.xtuner.configs.scope import DATASETS, PACKED_INTERN_REPO, TEXTS, TOKENS, datasets, row_dataset
from twinlens.xtuner.configs.tree import CHAT_HOOK, ConfigTree, describe

# Functions for row formats that twinlens detects by their keys; None: rows in XTuner's own format.
KNOWN_MAP_FUNCTIONS = (None, "alpaca_map_fn", "oasst1_map_fn", "openai_map_fn", "llava_map_fn")
CUT = "XTuner cuts rows at the end of a pack; twinlens packs whole rows"
FILE_KINDS = ("json", "parquet")
WORKERS = 32  # XTuner's default of map_num_proc: processes that pack, each its own share of the rows
PROCESSED = "processed_dataset_dict_path"
PATCHES = 576  # of CLIP ViT-L/14 at 336 pixels, the tower of all LLaVA configs of XTuner


def text_data(tree: ConfigTree) -> dict[str, Any]:
    """`data` of a text task."""
    paths = datasets(tree)
    data: dict[str, Any] = {"files": _files(tree)}
    kind = tree.type_name(paths[0])
    if kind == PACKED_INTERN_REPO:
        data |= {"max_length": _packed_length(tree, paths), "pack": True}
        varlen, workers = "model.use_varlen_attn", 1
        isolated = tree.get(varlen, False)
    else:
        data["max_length"] = _shared(tree, paths, "max_length", 2048)
        data["pack"] = bool(kind.startswith("process_") and _shared(tree, paths, "pack_to_max_length", True))
        if not data["pack"]:
            return data
        varlen = f"{paths[0]}.use_varlen_attn"
        isolated = _shared(tree, paths, "use_varlen_attn", False)
        workers = _shared(tree, paths, "map_num_proc", WORKERS)
    if isolated:
        tree.note(varlen, CUT)
    return data | {"packing": "isolated" if isolated else "xtuner", "pack_workers": workers}


def _packed_length(tree: ConfigTree, paths: list[str]) -> Any:
    length = _shared(tree, paths, "packed_length", 8192)
    if (longest := _shared(tree, paths, "dataset_cfg.max_length", length)) != length:
        tree.note(f"{paths[0]}.dataset_cfg.max_length", f"{describe(longest)}; rows are cut to data.max_length")
    if _shared(tree, paths, "dataset_cfg.min_length", 0):
        tree.note(f"{paths[0]}.dataset_cfg.min_length", "XTuner drops shorter rows; twinlens keeps them")
    return length


def image_data(tree: ConfigTree, tower: str) -> dict[str, Any]:
    """`data` of an image task; its `max_length` counts image tokens, XTuner's counts text tokens only."""
    paths = datasets(tree)
    _shared(tree, paths, "max_length", 2048)
    text = tree.number(f"{paths[0]}.max_length", 2048)
    patches = patches_of(tower)
    if patches is None:
        patches = PATCHES
        tree.note(f"{paths[0]}.max_length", f"text tokens only; data.max_length adds {patches} image tokens")
    if not _shared(tree, paths, "pad_image_to_square", False):
        tree.note(f"{paths[0]}.pad_image_to_square", "pictures are always padded to a square, never cropped")
    return {"files": _files(tree), "max_length": int(text) + patches, "pack": False}


def picture_folder(tree: ConfigTree) -> str | None:
    """The folder of the pictures of all datasets."""
    return _shared(tree, datasets(tree), "image_folder", None)


def template_of(tree: ConfigTree) -> str | None:
    """XTuner's name of the chat template; for rows of tokens, the template of the config's sample answers."""
    paths = [row_dataset(tree, dataset) for dataset in datasets(tree)]
    if tree.type_name(paths[0]) == TOKENS:
        return tree.short_name(f"{CHAT_HOOK}.prompt_template")
    template = f"{paths[0]}.template_map_fn.template"
    if tree.keys(template):
        tree.note(template, "a custom template; the tokenizer's template is used, or set `template` to a name")
        return None
    for path in paths:
        tree.get(f"{path}.template_map_fn.type")
    _shared(tree, paths, "template_map_fn.template", None)
    return tree.short_name(template)


def patches_of(tower: str) -> int | None:
    """Number of patches of a picture, from a tower's name such as clip-vit-large-patch14-336."""
    found = re.search(r"patch(\d+)-(\d+)", tower)
    return (int(found[2]) // int(found[1])) ** 2 if found else None


def _shared(tree: ConfigTree, paths: list[str], key: str, default: Any) -> Any:
    """The first dataset's value of a key; a note for each dataset with another value."""
    value, *others = (tree.get(f"{path}.{key}", default) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        if other != value:
            tree.note(f"{path}.{key}", f"{describe(other)}; the first dataset's value is used: {describe(value)}")
    return value


def _files(tree: ConfigTree) -> list[str]:
    files: list[str] = []
    for dataset in (row_dataset(tree, dataset) for dataset in datasets(tree)):
        kind = tree.type_name(dataset)
        argument, unread_rows = DATASETS[kind]
        map_function = f"{dataset}.dataset_map_fn"
        if unread_rows:
            tree.note(dataset, f"{unread_rows} are not read; convert them to messages")
        elif (name := tree.short_name(map_function)) not in KNOWN_MAP_FUNCTIONS:
            tree.note(map_function, f"{name} is not run; if rows need it, convert them to messages")
        if kind == TEXTS and tree.has(f"{dataset}.{PROCESSED}"):
            argument = PROCESSED
        path = f"{dataset}.{argument}"
        files += _loaded_files(tree, path) if argument == "dataset" else _paths(tree, path)
    return files


def _loaded_files(tree: ConfigTree, source: str) -> list[str]:
    """The files of a `load_dataset` call, or the name of its dataset."""
    tree.type_name(source)
    if (split := tree.get(f"{source}.split", "train")) != "train":
        tree.note(f"{source}.split", f"{split}; all rows of the files are read")
    name = tree.text(f"{source}.path") or tree.text(f"{source}.dataset_name")
    files = _paths(tree, f"{source}.data_files") if tree.has(f"{source}.data_files") else []
    if files and name not in FILE_KINDS:
        tree.note(f"{source}.path", f"{name}: JSON and Parquet files are read; convert others")
    if not files and name is None:
        raise tree.error(f"{source} names no data; write data_files=...")
    return files or [str(name)]


def _paths(tree: ConfigTree, path: str) -> list[str]:
    """The value at a path as files: one file, several, or the `train` split of a dict."""
    if tree.keys(path):
        path = f"{path}.train"
    value = tree.get(path)
    found = value if isinstance(value, list | tuple) else [value]
    if not found or not all(isinstance(each, str) for each in found):
        raise tree.error(f"{path} is {describe(value)}, not a file; write the file's path in quotes")
    return list(found)
