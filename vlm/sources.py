"""Dataset files of an image task: rows with resolved picture paths; pictures checked without a model."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm.sources import dataset_path
from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow, read_rows
from tuning.data.pictures import open_picture, picture_path
from tuning.data.row_readers import ReadNotes
from tuning.paths import resolve_path

log = logging.getLogger("twinlens")


def read_image_conversations(
    files: Iterable[Path], folder: Path | None, tell: Callable[[str], None] = log.info
) -> Iterator[SourceRow]:
    """The rows of several files in order, the paths of their pictures full; rows without pictures pass as they are.

    Args:
        folder: where picture paths start; each file's own folder when None.

    Raises:
        DataError: a row cannot be used, or a picture is missing or leads out of the folder.
    """
    for file in files:
        notes = ReadNotes()
        path = dataset_path(file)
        below = path.parent if folder is None else resolve_path(folder)
        seen: dict[Conversation, Conversation] = {}
        for row in read_rows(path, notes):
            if not row.conversation.images:
                yield row
                continue
            if row.conversation not in seen:
                images = tuple(picture_path(str(image), below, row.where) for image in row.conversation.images)
                seen[row.conversation] = dataclasses.replace(row.conversation, images=images)
            yield dataclasses.replace(row, conversation=seen[row.conversation])
        for sentence in notes.sentences():
            tell(f"{file}: {sentence}")


def check_pictures(named_by: Mapping[Path, str]) -> None:
    """Open every picture once, to report a broken one before anything trains.

    Args:
        named_by: paths of pictures, and the row or probe that names each.

    Raises:
        DataError: a picture is broken, too large or no picture; its row is named.
    """

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(open_picture, named_by, named_by.values()):
            pass
