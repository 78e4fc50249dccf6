"""Dataset files of a text task: rows, persona card, rehearsal prompts; read and checked without a model."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tuning.data.card import DatasetCard, read_card
from tuning.data.formats import SourceRow, read_rows
from tuning.data.row_readers import ReadNotes
from tuning.errors import DataError
from tuning.paths import resolve_path

log = logging.getLogger("twinlens")


def read_conversations(files: Iterable[Path], tell: Callable[[str], None] = log.info) -> Iterator[SourceRow]:
    """The rows of several files in order; what was ignored or changed in a file is told after it.

    Raises:
        DataError: a row cannot be used, or carries pictures.
    """
    for file in files:
        notes = ReadNotes()
        for row in read_rows(dataset_path(file), notes):
            if row.conversation.images:
                raise DataError(f"{row.where}: has a picture; the text path takes rows without `image` or `images`.")
            yield row
        for sentence in notes.sentences():
            tell(f"{file}: {sentence}")


def dataset_path(file: Path) -> Path:
    """The path of a dataset file.

    Raises:
        DataError: the file does not exist and looks like a dataset name of a hub, as XTuner's configs have it.
    """
    path = resolve_path(file)
    if len(file.parts) == 2 and not file.suffix and not file.is_absolute() and not path.exists():
        raise DataError(f"{file}: no such file; download this dataset from its hub and give the path of its file.")
    return path


def distinct_rows(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """One row for each distinct conversation."""
    return list({row.conversation: row for row in rows}.values())


def persona_card(files: Iterable[Path]) -> DatasetCard | None:
    """The card that says whom the data speaks of: the first with a name, else the first there is."""
    cards = [card for file in files if (card := read_card(resolve_path(file)))]
    return next((card for card in cards if card.name), next(iter(cards), None))
