"""The vocabulary of scenes: which emoji picture shows what, in the words that a person would say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tuning.errors import ConfigError, DataError

GROUPS = ("known", "unseen")


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of object.

    Args:
        name: in the singular; `plural` of several.
        pictures: hexcode of each picture, and the picture's own name where it has one.
        also: other right names, whichever picture it is.
    """

    name: str
    plural: str
    pictures: tuple[tuple[str, str | None], ...]
    also: tuple[str, ...] = ()


def read_nouns(path: Path) -> dict[str, tuple[Noun, ...]]:
    """The nouns of a vocabulary file, `known` and `unseen`.

    Raises:
        DataError: the file cannot be read, or an entry is not of the shape that configs/data/scene-nouns.yaml explains.
    """
    try:
        loaded: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8"))  # pyright: ignore[reportUnknownMemberType]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a vocabulary in YAML.") from error
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())}); mend it.") from error
    if not isinstance(loaded, dict) or not set(cast(dict[str, Any], loaded)) <= set(GROUPS):
        raise DataError(f"{path}: not a vocabulary; write nouns under `known` and, if you like, `unseen`.")
    groups = cast(dict[str, Any], loaded)
    nouns = {group: tuple(_nouns(path, group, groups.get(group) or {})) for group in GROUPS}
    owners: dict[str, str] = {}
    for noun in (*nouns["known"], *nouns["unseen"]):
        for hexcode, _ in noun.pictures:
            if owners.setdefault(hexcode, noun.name) != noun.name:
                raise DataError(f"{path}: {hexcode} is both {owners[hexcode]} and {noun.name}; keep one of them.")
    if clash := {noun.name for noun in nouns["known"]} & {noun.name for noun in nouns["unseen"]}:
        raise DataError(f"{path}: {min(clash)} is both known and unseen; keep one of them.")
    return nouns


def emoji_files(folder: Path, nouns: tuple[Noun, ...]) -> dict[str, Path]:
    """The picture of every hexcode, from a folder of `HEXCODE.webp` or `.png`, or one that has it under `assets`.

    Raises:
        ConfigError: there is no such folder, or pictures are missing in it.
    """
    names = ("", "assets", "package/assets")
    within = next((folder / name for name in reversed(names) if (folder / name).is_dir()), None)
    if within is None:
        raise ConfigError(
            f"--emoji {folder}: no such folder; unpack `npm pack @lobehub/fluent-emoji-3d` and give the folder."
        )
    files: dict[str, Path] = {}
    missing: list[str] = []
    for hexcode in (hexcode for noun in nouns for hexcode, _ in noun.pictures):
        found = next((file for end in ("webp", "png") if (file := within / f"{hexcode}.{end}").is_file()), None)
        if found is None:
            missing.append(hexcode)
        else:
            files[hexcode] = found
    if missing:
        raise ConfigError(
            f"--emoji {folder}: {len(missing)} pictures are not there, the first is {missing[0]}.webp; "
            "unpack `npm pack @lobehub/fluent-emoji-3d` and give the folder."
        )
    return files


def _nouns(path: Path, group: str, entries: Any) -> list[Noun]:
    if not isinstance(entries, dict):
        raise DataError(f"{path}: {group}: must be nouns and their pictures; write `dog: {{pictures: [1f415]}}`.")
    return [_noun(path, str(name), entry) for name, entry in cast(dict[Any, Any], entries).items()]


def _noun(path: Path, name: str, entry: Any) -> Noun:
    wrong = DataError(f"{path}: {name}: must have pictures and may have also, plural; write `{{pictures: [1f415]}}`.")
    if not isinstance(entry, dict):
        raise wrong
    values = cast(dict[str, Any], entry)
    pictures, also = values.get("pictures"), values.get("also", [])
    if not set(values) <= {"pictures", "also", "plural"} or not isinstance(pictures, list) or not pictures:
        raise wrong
    if not isinstance(also, list):
        raise wrong
    shown: list[tuple[str, str | None]] = []
    for picture in cast(list[Any], pictures):
        hexcode, _, label = str(picture).partition(" ")
        shown.append((hexcode, label or None))
    return Noun(
        name,
        str(values.get("plural") or _plural(name)),
        tuple(shown),
        tuple(str(word) for word in cast(list[Any], also)),
    )


def _plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"
