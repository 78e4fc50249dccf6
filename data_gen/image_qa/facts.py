"""Facts about pictures: the models of a facts file, reading and checks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from data_gen.image_qa.fact_files import read_fact_file
from data_gen.names import CONTROL, fold
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN
from tuning.data.pictures import open_picture, picture_path
from tuning.errors import DataError
from tuning.evaluation.probes import PLACEHOLDER, mentions_any
from tuning.yaml_files import YamlFile

MAX_COUNT = 1000  # objects of one kind in a picture
FORBID = ConfigDict(extra="forbid")


def _one_line(text: str) -> str:
    """Text on one line that a dialogue and a probe file can hold."""
    # JSON escapes an emoji as a surrogate pair, which YAML does not join.
    text = " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())
    if not text:
        raise ValueError("must be text and not empty; write the text")
    if CONTROL.search(text) or "\ufffd" in text:
        raise ValueError("contains characters that cannot be written; type the text again")
    if DEFAULT_IMAGE_TOKEN in text:
        raise ValueError(f"contains {DEFAULT_IMAGE_TOKEN}, which stands for a picture; remove it")
    if placeholder := PLACEHOLDER.search(text):
        raise ValueError(f"contains {placeholder[0]}, which probe files fill in; remove the braces")
    return text


def _count(text: Any) -> int:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 9 and 0 < int(text) <= MAX_COUNT:
        return int(text)
    raise ValueError(
        f"must be a whole number from 1 to {MAX_COUNT}; name what is not there under `absent`, leave a larger count out"
    )


Text = Annotated[str, BeforeValidator(lambda value: _one_line(value) if isinstance(value, str) else value)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in a picture, and its visible properties."""

    name: Text
    color: Text | None = None
    count: Annotated[int | None, BeforeValidator(_count)] = None
    place: Text | None = None

    __pydantic_config__ = FORBID


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that the picture does not show.

    Args:
        source: who or what states it.
        expect: terms of a right answer, any of them; empty where they are taken from `answer`.
        also: other wordings of the question.
    """

    ask: Text
    answer: Text
    source: Text | None = None
    expect: Texts = ()
    also: Texts = ()

    __pydantic_config__ = FORBID


@dataclass(frozen=True, slots=True, kw_only=True)
class FactEntry:
    """One entry of a facts file.

    Args:
        image: path of the picture, relative to the facts file.
        text: texts written in the picture.
        absent: objects that are not in the picture, and may be asked about.
    """

    image: Text
    caption: Text | None = None
    objects: Annotated[tuple[Thing, ...], Field(min_length=1)] = ()
    text: Texts = ()
    facts: Annotated[tuple[Fact, ...], Field(min_length=1)] = ()
    absent: Texts = ()

    __pydantic_config__ = FORBID


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture(FactEntry):
    """A picture with its facts.

    Args:
        path: the file of the picture.
        where: `workshop.yaml, line 2`, for messages.
    """

    path: Path
    where: str


def read_facts(path: Path) -> tuple[Picture, ...]:
    """Read a facts file and open its pictures.

    Raises:
        DataError: all faults, one line each, with file, line, key and fix.
    """
    file = read_fact_file(path)
    pictures: list[Picture] = []
    lines: dict[Path, int | None] = {}
    for index, values in enumerate(file.values["pictures"]):
        loc = ("pictures", index)
        entry = file.validate(FactEntry, loc)
        image = _open_picture(file, (*loc, "image"), path.parent, values) if hasattr(values, "get") else None
        if image in lines:
            file.add_fault(loc, "image", f"{image} is at line {lines[image]} too; write one entry for both.")
        if image is not None:
            lines.setdefault(image, file.line(loc))
        if entry is not None:
            _check_entry(file, loc, entry)
            fields = {name: getattr(entry, name) for name in FactEntry.__dataclass_fields__}
            pictures.append(Picture(**fields, path=image or path, where=file.at(loc)))
    file.raise_faults()
    return tuple(pictures)


def _open_picture(file: YamlFile, loc: tuple[int | str, ...], folder: Path, values: Any) -> Path | None:
    image = values.get("image")
    if not isinstance(image, str) or not image.strip():
        return None
    try:
        path = picture_path(" ".join(image.split()), folder, file.at(loc))
        open_picture(path, file.at(loc))
    except DataError as error:
        file.faults.append(str(error))
        return None
    return path


def _check_entry(file: YamlFile, loc: tuple[int | str, ...], entry: FactEntry) -> None:
    """Faults between the values of one entry: repeated names and questions, contradictions."""
    if not (entry.caption or entry.objects or entry.facts):
        file.add_fault(loc, entry.image, "has no facts; add a caption, an object or a fact.")
    names: dict[str, int | None] = {}
    for number, name in enumerate(thing.name for thing in entry.objects):
        at = (*loc, "objects", number)
        if _key(name) in names:
            file.add_fault(
                at,
                "objects.name",
                f"{name} is at line {names[_key(name)]} too, and a question could mean either; give one of them a "
                f"count, or both names that tell them apart, such as `left {name}`.",
            )
        names.setdefault(_key(name), file.line(at))
    asked: dict[str, int | None] = {}
    for number, fact in enumerate(entry.facts):
        at = (*loc, "facts", number)
        for question in (fact.ask, *fact.also):
            if fold(question) in asked:
                repeated = f"{question!r} is asked at line {asked[fold(question)]} too; ask it once."
                file.add_fault(at, "facts.ask", repeated)
            asked[fold(question)] = file.line(at)
        if fact.expect and not mentions_any(fact.answer, fact.expect):
            terms = ", ".join(fact.expect)
            file.add_fault(at, "facts.expect", f"the answer contains none of {terms}; take a term from the answer.")
    absent: set[str] = set()
    for name in entry.absent:
        if _key(name) in names:
            file.add_fault((*loc, "absent"), "absent", f"{name} is among the objects; remove it from one of the two.")
        if _key(name) in absent:
            file.add_fault((*loc, "absent"), "absent", f"{name} appears twice; remove one of them.")
        absent.add(_key(name))


def _key(name: str) -> str:
    """One key for names that a question cannot tell apart: `a cup`, `the cup`, `cups`."""
    return re.sub(r"^(an?|the) (?=.)|(?<=[a-z]{2})s$", "", fold(name))
