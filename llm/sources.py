"""Dataset files of a text task: rows, persona card, rehearsal prompts; read and checked without a model."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tuning.data.card import DatasetCard, read_card
from tuning.data.formats import SourceRow, read_rows
from tuning.data.row_readers import ReadNotes
from tuning.errors import ConfigError, DataError
from tuning.paths import resolve_path

log = logging.getLogger("twinlens")


def read_conversations(files: Iterable[Path], tell: Callable[[str], None] = log.info) -> Iterator[SourceRow]:
    """The rows of several files in order; what was ignored or changed in a file is told after it.

    Raises:
        DataError: a row cannot be used, or carries pictures.
    """
    for file in files:
        notes = ReadNotes()
        for row in read_rows(resolve_path(file), notes):
            if row.conversation.images:
                raise DataError(f"{row.where}: has a picture; the text path takes rows without `image` or `images`.")
            yield row
        for sentence in notes.sentences():
            tell(f"{file}: {sentence}")


def distinct_rows(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """One row for each distinct conversation."""
    return list({row.conversation: row for row in rows}.values())


def persona_card(files: Iterable[Path]) -> DatasetCard | None:
    """The card that says whom the data speaks of: the first with a name, else the first there is."""
    cards = [card for file in files if (card := read_card(resolve_path(file)))]
    return next((card for card in cards if card.name), next(iter(cards), None))


def read_prompts(files: Iterable[Path]) -> list[str]:
    """The distinct rehearsal prompts of YAML lists, in order.

    Raises:
        ConfigError: a file is missing or is not a list of strings.
    """
    prompts: dict[str, None] = {}
    for file in files:
        path = resolve_path(file)
        try:
            listed = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            reason = " ".join(str(error).split())  # a YAML error spreads over lines
            raise ConfigError(
                f"rehearsal.prompts: {file}: cannot be read as YAML ({reason}); give a list of prompts."
            ) from error
        if not isinstance(listed, list) or not listed:
            raise ConfigError(f"rehearsal.prompts: {file}: not a list of prompts; write one `- prompt` a line.")
        for number, prompt in enumerate(listed, 1):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ConfigError(f"rehearsal.prompts: {file}, prompt {number}: not text; quote it or take it out.")
            prompts[prompt.strip()] = None
    return list(prompts)
