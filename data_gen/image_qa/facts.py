"""Facts about pictures: validate parsed values and make objects of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from data_gen.checks import CONTROL
from data_gen.image_qa.fact_files import read_fact_file
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN
from tuning.data.pictures import open_picture, picture_path
from tuning.errors import DataError
from tuning.evaluation.probes import PLACEHOLDER, mentions_any, normalize
from tuning.yaml_files import YamlFile

MAX_COUNT = 1000  # objects of one kind in a picture
FORBID = ConfigDict(extra="forbid")


def _one_line(text: str) -> str:
    """The text on one line, if it is valid in a dialogue and in a probe file."""
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
        f"must be a whole number from 1 to {MAX_COUNT}; write an absent object under `absent`; omit a larger count"
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
        expect: terms; a correct answer contains one of them. If empty, the terms are taken from `answer`.
        also: the same question in other words.
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
        absent: objects that are not in the picture; questions ask about them.
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
        where: position for error messages, such as `workshop.yaml, line 2`.
    """

    path: Path
    where: str


def read_facts(path: Path) -> tuple[Picture, ...]:
    """Read a facts file and open its pictures.

    Raises:
        DataError: all faults, one per line, with file, line, key and fix.
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
    """Check the values of one entry against each other: repeated names and questions, contradictions."""
    if not (entry.caption or entry.objects or entry.facts):
        file.add_fault(loc, entry.image, "has no facts; add a caption, an object or a fact.")
    names: dict[str, int | None] = {}
    for number, name in enumerate(thing.name for thing in entry.objects):
        at = (*loc, "objects", number)
        if _key(name) in names:
            file.add_fault(
                at,
                "objects.name",
                f"{name} is at line {names[_key(name)]} too, so a question about it is ambiguous; write one entry "
                f"with a count, or two different names such as `left {name}`.",
            )
        names.setdefault(_key(name), file.line(at))
    asked: dict[str, int | None] = {}
    for number, fact in enumerate(entry.facts):
        at = (*loc, "facts", number)
        for question in (fact.ask, *fact.also):
            if normalize(question) in asked:
                repeated = f"{question!r} is asked at line {asked[normalize(question)]} too; ask it once."
                file.add_fault(at, "facts.ask", repeated)
            asked[normalize(question)] = file.line(at)
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
    """A key that is equal for names that a question cannot distinguish: `a cup`, `the cup`, `cups`."""
    return re.sub(r"^(an?|the) (?=.)|(?<=[a-z]{2})s$", "", normalize(name))
