"""Data files of a text task: dataset rows, dataset card, rehearsal prompts; read without a model."""

# pyright: reportUnknownMemberType=false

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from tuning.data.card import DatasetCard, read_card
from tuning.data.formats import SourceRow, read_rows
from tuning.data.row_readers import ReadNotes
from tuning.errors import ConfigError, DataError
from tuning.paths import resolve_path
from tuning.yaml_files import read_yaml

log = logging.getLogger("twinlens")
Prompts = tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...]


def read_conversations(files: Iterable[Path], tell: Callable[[str], None] = log.info) -> Iterator[SourceRow]:
    """The rows of several files in order.

    Args:
        tell: receives a sentence about what was ignored or changed, after each file.

    Raises:
        DataError: a row cannot be used, or has pictures.
    """
    for _, row in read_dataset_files(files, tell):
        if row.conversation.images:
            raise DataError(f"{row.where}: has a picture, but a text task takes rows without `image` or `images`.")
        yield row


def read_dataset_files(files: Iterable[Path], tell: Callable[[str], None]) -> Iterator[tuple[Path, SourceRow]]:
    """The rows of several files in order, each with the path of its file; `tell` as in `read_conversations`.

    Raises:
        DataError: a row cannot be used.
    """
    for file in files:
        notes = ReadNotes()
        path = dataset_path(file)
        for row in read_rows(path, notes):
            yield path, row
        for sentence in notes.sentences():
            tell(f"{file}: {sentence}")


def dataset_path(file: Path) -> Path:
    """The path of a dataset file.

    Raises:
        DataError: the file does not exist and its name looks like a dataset on a hub, as in XTuner's configs.
    """
    path = resolve_path(file)
    if len(file.parts) == 2 and not file.suffix and not file.is_absolute() and not path.exists():
        raise DataError(f"{file}: no such file; download this dataset from its hub and give the path of its file.")
    return path


def distinct_rows(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """One row for each distinct conversation."""
    return list({row.conversation: row for row in rows}.values())


def persona_card(files: Iterable[Path]) -> DatasetCard | None:
    """The dataset card of the persona: the first card with a name, else the first card."""
    cards = [card for file in files if (card := read_card(resolve_path(file)))]
    return next((card for card in cards if card.name), next(iter(cards), None))


def read_prompts(files: Iterable[Path]) -> list[str]:
    """The distinct rehearsal prompts of several YAML lists, in order.

    Raises:
        ConfigError: a file is missing or is not a list of texts.
    """
    prompts: dict[str, None] = {}
    for path in files:
        where = f"rehearsal.prompts: {path}"
        file = read_yaml(resolve_path(path), "list of prompts", ConfigError, where=where, as_text=True)
        if not isinstance(file.values, list) or not file.values:
            raise ConfigError(f"{where}: not a list of prompts; write one `- prompt` on each line.")
        prompts |= dict.fromkeys(file.validate(Prompts) or ())
        file.raise_faults(ConfigError)
    return list(prompts)
