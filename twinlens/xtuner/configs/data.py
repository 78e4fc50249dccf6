"""The data of an XTuner config, as that of a task: files, lengths, packing, template."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import re
from typing import Any

from twinlens.xtuner.configs.scope import PACKED_INTERN_REPO, datasets, row_dataset
from twinlens.xtuner.configs.tree import CHAT_HOOK, ConfigTree, describe

# Rows that we know by their own keys, whatever function XTuner reads them with; None is its own format.
KNOWN_ROWS = (None, "alpaca_map_fn", "oasst1_map_fn", "openai_map_fn", "llava_map_fn")
CUT = "rows are cut where a pack ends; here whole rows share one"
FILE_KINDS = ("json", "parquet")
WORKERS = 32  # processes that map and pack, each its own share, unless map_num_proc says otherwise
TOKENS, TEXTS = "load_intern_repo_tokenized_dataset", "load_intern_repo_untokenized_dataset"
# Rows of forms of their own, by what reads them in XTuner.
OTHER_ROWS = {
    "MOSSSFTDataset": "rows of MOSS's own format",
    "RefCOCOJsonDataset": "rows of RefCOCO, a box asked for by a phrase,",
    "InvRefCOCOJsonDataset": "rows of RefCOCO, a phrase asked for by a box,",
    TOKENS: "folders of tokens, as InternLM's own training has them,",
    TEXTS: "folders of lists of messages, as InternLM's own training has them,",
}
# Where a dataset names its files; others are given a dataset.
PLACES = {
    "LLaVADataset": "data_path",
    "MOSSSFTDataset": "data_file",
    "RefCOCOJsonDataset": "data_path",
    "InvRefCOCOJsonDataset": "data_path",
    TOKENS: "folder",
    TEXTS: "folder",
}
PROCESSED = "processed_dataset_dict_path"
PATCHES = 576  # of CLIP ViT-L/14 at 336 pixels, which every LLaVA config of XTuner takes


def text_data(tree: ConfigTree) -> dict[str, Any]:
    """`data` of a text task."""
    data: dict[str, Any] = {"files": _files(tree)}
    first, *others = datasets(tree)
    if tree.type_name(first) == PACKED_INTERN_REPO:
        return data | _intern_repo_packs(tree, first, others)
    data["max_length"] = _alike(tree, first, others, "max_length", 2048)
    packs = tree.type_name(first).startswith("process_") and _alike(tree, first, others, "pack_to_max_length", True)
    data["pack"] = bool(packs)
    if packs:
        isolated = _alike(tree, first, others, "use_varlen_attn", False)
        if isolated:
            tree.note(f"{first}.use_varlen_attn", CUT)
        data["packing"] = "isolated" if isolated else "xtuner"
        data["pack_workers"] = _alike(tree, first, others, "map_num_proc", WORKERS)
    return data


def _intern_repo_packs(tree: ConfigTree, first: str, others: list[str]) -> dict[str, Any]:
    """Packs of rows cut where one ends, each file by itself in one process; with `use_varlen_attn` rows are apart."""
    length = _alike(tree, first, others, "packed_length", 8192)
    if (longest := _alike(tree, first, others, "dataset_cfg.max_length", length)) != length:
        tree.note(f"{first}.dataset_cfg.max_length", f"{describe(longest)}; rows are cut to data.max_length, a pack's")
    if _alike(tree, first, others, "dataset_cfg.min_length", 0):
        tree.note(f"{first}.dataset_cfg.min_length", "shorter rows are left out there; here none is")
    isolated = tree.get("model.use_varlen_attn", False)
    if isolated:
        tree.note("model.use_varlen_attn", CUT)
    packing = "isolated" if isolated else "xtuner"
    return {"max_length": length, "pack": True, "packing": packing, "pack_workers": 1}


def image_data(tree: ConfigTree, tower: str) -> dict[str, Any]:
    """`data` of an image task, whose rows count their patches, where XTuner's `max_length` counts text alone."""
    first, *others = datasets(tree)
    _alike(tree, first, others, "max_length", 2048)
    text = tree.number(f"{first}.max_length", 2048)
    patches = patches_of(tower)
    if patches is None:
        patches = PATCHES
        tree.note(f"{first}.max_length", f"text alone; {patches} patches are added, see data.max_length")
    if not _alike(tree, first, others, "pad_image_to_square", False):
        tree.note(f"{first}.pad_image_to_square", "pictures are always padded to a square, nothing is cut off")
    return {"files": _files(tree), "max_length": int(text) + patches, "pack": False}


def picture_folder(tree: ConfigTree) -> str | None:
    """Where the pictures of every dataset lie."""
    first, *others = datasets(tree)
    return _alike(tree, first, others, "image_folder", None)


def template_of(tree: ConfigTree) -> str | None:
    """The name of the chat template, in XTuner's list; for rows that hold tokens, that of the config's samples."""
    first, *others = (row_dataset(tree, dataset) for dataset in datasets(tree))
    if tree.type_name(first) == TOKENS:
        return tree.short_name(f"{CHAT_HOOK}.prompt_template")
    path = "template_map_fn.template"
    if tree.keys(f"{first}.{path}"):
        tree.note(f"{first}.{path}", "a template of its own; the tokenizer's is taken, or one by name as `template`")
        return None
    for dataset in (first, *others):
        tree.get(f"{dataset}.template_map_fn.type")
    _alike(tree, first, others, path, None)
    return tree.short_name(f"{first}.{path}")


def patches_of(tower: str) -> int | None:
    """Patches that a tower makes of a picture, told by its name, such as clip-vit-large-patch14-336."""
    found = re.search(r"patch(\d+)-(\d+)", tower)
    return (int(found[2]) // int(found[1])) ** 2 if found else None


def _alike(tree: ConfigTree, first: str, others: list[str], key: str, default: Any) -> Any:
    """A value that all datasets should share: that of the first, and a note where another has its own."""
    value = tree.get(f"{first}.{key}", default)
    for other in others:
        if (own := tree.get(f"{other}.{key}", default)) != value:
            tree.note(
                f"{other}.{key}", f"{describe(own)}; one task has one: {describe(value)}, that of the first dataset"
            )
    return value


def _files(tree: ConfigTree) -> list[str]:
    files: list[str] = []
    for dataset in (row_dataset(tree, dataset) for dataset in datasets(tree)):
        kind = tree.type_name(dataset)
        if rows := OTHER_ROWS.get(kind):
            tree.note(dataset, f"{rows} are not read; convert them to messages")
        else:
            _settle_rows(tree, dataset)
        if kind == TEXTS and tree.has(f"{dataset}.{PROCESSED}"):
            files += _paths(tree, f"{dataset}.{PROCESSED}")
        elif place := PLACES.get(kind):
            files += _paths(tree, f"{dataset}.{place}")
        else:
            files += _loaded(tree, f"{dataset}.dataset")
    return files


def _settle_rows(tree: ConfigTree, dataset: str) -> None:
    path = f"{dataset}.dataset_map_fn"
    if (name := tree.short_name(path)) not in KNOWN_ROWS:
        tree.note(path, f"{name}; rows that need it are not read here, convert them to messages")


def _loaded(tree: ConfigTree, source: str) -> list[str]:
    """The files that `load_dataset` is given, or the name that it fetches."""
    tree.type_name(source)
    if (split := tree.get(f"{source}.split", "train")) != "train":
        tree.note(f"{source}.split", f"{split}; files are read whole")
    name = tree.text(f"{source}.path") or tree.text(f"{source}.dataset_name")
    files = _paths(tree, f"{source}.data_files") if tree.has(f"{source}.data_files") else []
    if files and name not in FILE_KINDS:
        tree.note(f"{source}.path", f"{name}: JSON and Parquet files are read; convert others")
    if not files and name is None:
        raise tree.error(f"{source} names no data; write data_files=...")
    return files or [str(name)]


def _paths(tree: ConfigTree, path: str) -> list[str]:
    """Files at a path: one, several, or a dict of splits, of which `train` is taken."""
    if tree.keys(path):
        path = f"{path}.train"
    value = tree.get(path)
    found = value if isinstance(value, list | tuple) else [value]
    if not found or not all(isinstance(each, str) for each in found):
        raise tree.error(f"{path} is {describe(value)}, not a file; write the file's path in quotes")
    return list(found)
