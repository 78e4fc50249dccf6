"""Dataset files of an image task: read rows with picture paths, check pictures."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm.data_files import dataset_path
from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow, read_rows
from tuning.data.pictures import open_picture, picture_path
from tuning.data.row_readers import ReadNotes
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
    for file in files:
        notes = ReadNotes()
        path = dataset_path(file)
        base = path.parent if folder is None else resolve_path(folder)
        resolved: dict[Conversation, Conversation] = {}
        for row in read_rows(path, notes):
            if not row.conversation.images:
                yield row
                continue
            if row.conversation not in resolved:
                images = tuple(picture_path(str(image), base, row.where) for image in row.conversation.images)
                resolved[row.conversation] = dataclasses.replace(row.conversation, images=images)
            yield dataclasses.replace(row, conversation=resolved[row.conversation])
        for sentence in notes.sentences():
            tell(f"{file}: {sentence}")


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
