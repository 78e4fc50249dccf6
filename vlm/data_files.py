"""Dataset files of an image task: read rows with picture paths, check pictures."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm.data_files import read_dataset_files
from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow
from tuning.data.pictures import open_picture, picture_path
from tuning.paths import resolve_path

log = logging.getLogger("twinlens")


def read_image_conversations(
    files: Iterable[Path], folder: Path | None, tell: Callable[[str], None] = log.info
) -> Iterator[SourceRow]:
    """Read the rows of files in order, with absolute picture paths.

    Args:
        folder: base folder of the picture paths; None for the folder of each file.

    Raises:
        DataError: a row cannot be used, or a picture is missing or outside the folder.
    """
    root = None if folder is None else resolve_path(folder)
    resolved: dict[tuple[Path, Conversation], Conversation] = {}
    for path, row in read_dataset_files(files, tell):
        if not row.conversation.images:
            yield row
            continue
        base = root or path.parent
        if (base, row.conversation) not in resolved:
            images = tuple(picture_path(str(image), base, row.where) for image in row.conversation.images)
            resolved[base, row.conversation] = dataclasses.replace(row.conversation, images=images)
        yield dataclasses.replace(row, conversation=resolved[base, row.conversation])


def check_pictures(named_by: Mapping[Path, str]) -> None:
    """Open every picture once, to find broken files before training.

    Args:
        named_by: the row or probe that names each picture, by the path of the picture.

    Raises:
        DataError: a file is broken, too large or not a picture; the error names its row.
    """
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(open_picture, named_by, named_by.values()):
            pass
