"""Dataset card: a JSON file beside each dataset with its counts, its persona and how it was made."""

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
        made_by: the command that writes the file.
        rows: number of rows, `distinct` of them different.
        sha256: of the bytes of the file.
        seed: random seed.
        name: the assistant's name, `owner` its owner, `model` the model it names as its base.
        languages: of the rows, as `zh` or `en`.
        markers: strings that show a leak of the persona in an unrelated answer.
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
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def card_to_dict(card: DatasetCard) -> dict[str, Any]:
    """Plain values for JSON, `sources` as a mapping."""
    return _CARD.dump_python(card, mode="json")


def card_from_dict(values: dict[str, Any]) -> DatasetCard:
    """The inverse of `card_to_dict`; unknown keys are ignored."""
    return _CARD.validate_python(values)


def write_card(dataset: Path, card: DatasetCard) -> Path:
    """Write the card beside its dataset and return its path."""
    path = card_path(dataset)
    write_atomically(path, json.dumps(card_to_dict(card), ensure_ascii=False, indent=2) + "\n")
    return path


def read_card(dataset: Path) -> DatasetCard | None:
    """The card beside a dataset, or None where there is none.

    Raises:
        DataError: the card is not the JSON that `write_card` writes.
    """
    path = card_path(dataset)
    if not path.exists():
        return None
    try:
        return _CARD.validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        reason = ": ".join([*map(str, fault["loc"]), fault["msg"]])
        raise DataError(f"{path}: not a dataset card ({reason}); delete it or make the dataset again.") from error
