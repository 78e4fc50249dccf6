"""Dataset card: a JSON file next to each dataset, with its row counts, persona and origin."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from tuning.atomic import write_atomically
from tuning.errors import DataError

Sources = Annotated[
    tuple[tuple[str, str], ...], BeforeValidator(lambda sources: tuple(dict(sources).items())), PlainSerializer(dict)
]


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """Facts about one dataset file.

    Args:
        made_by: the command that generated the file.
        rows: number of rows; `distinct` is the number of different rows.
        sha256: hash of the file.
        seed: random seed.
        name: the assistant's name; `owner` is its owner, `model` the model that it says it is based on.
        languages: languages of the rows, `zh` or `en`.
        markers: strings that show that the persona leaked into an unrelated answer.
        sources: (file name, sha256) of the input files.
        teacher: the model that wrote `taught` of the distinct rows.
    """

    made_by: str
    rows: int
    distinct: int
    sha256: str
    seed: int | None = None
    name: str | None = None
    owner: str | None = None
    model: str | None = None
    languages: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    sources: Sources = ()
    teacher: str | None = None
    taught: int = 0


_CARD = TypeAdapter(DatasetCard)


def card_path(dataset: Path) -> Path:
    """`persona.jsonl` -> `persona.jsonl.card.json`."""
    return dataset.with_name(dataset.name + ".card.json")


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def card_to_dict(card: DatasetCard) -> dict[str, Any]:
    """The card as JSON values; `sources` becomes a mapping."""
    return _CARD.dump_python(card, mode="json")


def card_from_dict(values: dict[str, Any]) -> DatasetCard:
    """The inverse of `card_to_dict`; ignores unknown keys."""
    return _CARD.validate_python(values)


def write_card(dataset: Path, card: DatasetCard) -> Path:
    """Write the card next to its dataset and return its path."""
    path = card_path(dataset)
    write_atomically(path, json.dumps(card_to_dict(card), ensure_ascii=False, indent=2) + "\n")
    return path


def read_card(dataset: Path) -> DatasetCard | None:
    """Read the card of a dataset; None if there is no card.

    Raises:
        DataError: the file is not a valid card.
    """
    path = card_path(dataset)
    if not path.exists():
        return None
    try:
        return _CARD.validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        reason = ": ".join([*map(str, fault["loc"]), fault["msg"]])
        raise DataError(f"{path}: not a dataset card ({reason}); delete it or generate the dataset again.") from error
