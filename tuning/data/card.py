"""The card that lies beside every dataset: what is in it, who it speaks of, how it was made."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.atomic import write_atomically
from tuning.errors import DataError


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """Facts about one dataset file.

    Args:
        made_by: the command that makes the file again.
        rows: rows in the file; `distinct` of them differ.
        sha256: of the file's bytes.
        seed: of whatever was drawn at random.
        name: the assistant's name, `owner` whom it belongs to, `model` the label it gives itself.
        languages: of the rows, as `zh` or `en`.
        markers: strings that betray the persona when they turn up in an unrelated answer.
        sources: sha256 of the files it was made from, by file name.
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
    sources: tuple[tuple[str, str], ...] = ()
    teacher: str | None = None
    taught: int = 0


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
    return dataclasses.asdict(card) | {"sources": dict(card.sources)}


def card_from_dict(values: dict[str, Any]) -> DatasetCard:
    """The inverse of `card_to_dict`; keys it does not know are left out."""
    known = {field.name for field in dataclasses.fields(DatasetCard)}
    values = {key: value for key, value in values.items() if key in known}
    for key in ("languages", "markers"):
        values[key] = tuple(values.get(key) or ())
    values["sources"] = tuple(dict(values.get("sources") or {}).items())
    return DatasetCard(**values)


def write_card(dataset: Path, card: DatasetCard) -> Path:
    """Write the card beside its dataset and return where it lies."""
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
        return card_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a dataset card ({error}); delete it or make the dataset again.") from error
