"""What is known of pictures: read from FACTS, checked whole, every fault named by file, line and key."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_gen.image_qa.fact_files import Items, Keys, Text, Tree, read_tree
from data_gen.names import CONTROL, fold
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN
from tuning.data.pictures import open_picture, picture_path
from tuning.errors import DataError
from tuning.evaluation.probes import PLACEHOLDER, mentions_any

PICTURE_KEYS = ("image", "caption", "objects", "text", "facts", "absent")
OBJECT_KEYS = ("name", "color", "count", "place")
FACT_KEYS = ("ask", "answer", "source", "expect", "also")
MOST = 1000  # things of one kind that anybody counted


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in a picture, and what can be seen of it."""

    name: str
    color: str | None = None
    count: int | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """What nobody can see.

    Args:
        source: who or what says so.
        expect: what a right answer holds, any of it; empty where that is left to be found in `answer`.
        also: other ways to ask.
    """

    ask: str
    answer: str
    source: str | None = None
    expect: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what is known of it.

    Args:
        image: its path as FACTS has it, relative to that file; `path` leads there.
        where: `workshop.yaml, line 2`, for messages.
        text: what is written in it.
        absent: what is not there, and may be asked after.
    """

    image: str
    path: Path
    where: str
    caption: str | None = None
    objects: tuple[Thing, ...] = ()
    text: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Faults:
    """Collects what is wrong, so that all of it is told at once."""

    path: Path
    sentences: list[str] = field(default_factory=list[str])

    def add(self, line: int, key: str, sentence: str) -> None:
        self.sentences.append(f"{self.path}, line {line}: {key}: {sentence}")


def read_facts(path: Path) -> tuple[Picture, ...]:
    """Read a facts file and open every picture of it.

    Raises:
        DataError: one line for each fault, with file, line, key and what to do.
    """
    tree, faults = read_tree(path), _Faults(path)
    entries = _entries(path, tree)
    pictures: list[Picture] = []
    seen: dict[Path, int] = {}
    for entry in entries:
        if not isinstance(entry, Keys):
            faults.add(entry.line, "pictures", "not a picture; write `- {image: workshop.jpg, caption: ...}`.")
            continue
        before = len(faults.sentences)
        picture = _picture(entry, faults)
        if picture is None:
            continue
        if picture.path in seen:
            line = seen[picture.path]
            faults.add(entry.line, "image", f"{picture.image} stands at line {line} too; write both as one entry.")
        elif len(faults.sentences) == before:
            pictures.append(picture)
        seen.setdefault(picture.path, entry.line)
    if faults.sentences:
        raise DataError("\n".join(faults.sentences))
    return tuple(pictures)


def _entries(path: Path, tree: Tree) -> tuple[Tree, ...]:
    if isinstance(tree, Keys):
        for key, value in tree.pairs:
            if key.value != "pictures":
                raise DataError(f"{path}, line {key.line}: {key.value}: no such key; the file has `pictures:` alone.")
            if isinstance(value, Items) and value.values and len(tree.pairs) == 1:
                return value.values
    raise DataError(f"{path}, line {tree.line}: pictures: holds no pictures; write `pictures:` and a list below it.")


def _picture(entry: Keys, faults: _Faults) -> Picture | None:
    values = _values(entry, PICTURE_KEYS, "", faults)
    image = _text(values, "image", "image", entry.line, faults, needed=True)
    caption = _text(values, "caption", "caption", entry.line, faults)
    objects = tuple(_things(values, faults))
    facts = tuple(_facts(values, faults))
    text = _texts(values, "text", "text", faults)
    absent = _texts(values, "absent", "absent", faults)
    if not any(key in values for key in ("caption", "objects", "facts")):
        faults.add(entry.line, image or "image", "nothing is known of it; add a caption, an object or a fact.")
    _refuse_present(values, absent, objects, faults)
    if image is None:
        return None
    path = faults.path.parent / image
    try:
        where = f"{faults.path}, line {values['image'].line}"
        path = picture_path(image, faults.path.parent, where)
        open_picture(path, where)
    except DataError as error:
        faults.sentences.append(str(error))
    return Picture(image, path, f"{faults.path}, line {entry.line}", caption, objects, text, facts, absent)


def _things(values: dict[str, Tree], faults: _Faults) -> Iterator[Thing]:
    seen: dict[str, int] = {}
    for entry in _list(values, "objects", faults):
        if not isinstance(entry, Keys):
            faults.add(entry.line, "objects", "not an object; write `- {name: robot, color: blue}`.")
            continue
        parts = _values(entry, OBJECT_KEYS, "objects.", faults)
        name = _text(parts, "name", "objects.name", entry.line, faults, needed=True)
        color = _text(parts, "color", "objects.color", entry.line, faults)
        place = _text(parts, "place", "objects.place", entry.line, faults)
        count = _count(parts, faults)
        if name is None:
            continue
        if _key(name) in seen:
            faults.add(
                entry.line,
                "objects.name",
                f"{name} stands at line {seen[_key(name)]} too, and a question could mean either; give one of them a "
                f"count, or both names that tell them apart, such as `left {name}`.",
            )
        seen.setdefault(_key(name), entry.line)
        yield Thing(name, color, count, place)


def _count(parts: dict[str, Tree], faults: _Faults) -> int | None:
    if "count" not in parts:
        return None
    node = parts["count"]
    text = node.value if isinstance(node, Text) else None
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 9:
        faults.add(
            node.line, "objects.count", f"{text or 'what stands there'} is no whole number; write one, such as 3."
        )
    elif int(text) == 0:
        faults.add(node.line, "objects.count", "0 of it are in the picture; name it under `absent` instead.")
    elif int(text) > MOST:
        faults.add(node.line, "objects.count", f"{text} is more than {MOST}; leave the count out.")
    else:
        return int(text)
    return None


def _facts(values: dict[str, Tree], faults: _Faults) -> Iterator[Fact]:
    asked: dict[str, int] = {}
    for entry in _list(values, "facts", faults):
        if not isinstance(entry, Keys):
            faults.add(entry.line, "facts", "not a fact; write `- {ask: ..., answer: ...}`.")
            continue
        parts = _values(entry, FACT_KEYS, "facts.", faults)
        ask = _text(parts, "ask", "facts.ask", entry.line, faults, needed=True)
        answer = _text(parts, "answer", "facts.answer", entry.line, faults, needed=True)
        source = _text(parts, "source", "facts.source", entry.line, faults)
        expect = _texts(parts, "expect", "facts.expect", faults)
        also = _texts(parts, "also", "facts.also", faults)
        if ask is None or answer is None:
            continue
        for question in (ask, *also):
            if fold(question) in asked:
                line = asked[fold(question)]
                faults.add(entry.line, "facts.ask", f"{question!r} is asked at line {line} too; ask it once.")
            asked[fold(question)] = entry.line
        if expect and not mentions_any(answer, expect):
            faults.add(
                entry.line,
                "facts.expect",
                f"none of {', '.join(expect)} stands in the answer, which then counts as wrong; take it from there.",
            )
        yield Fact(ask, answer, source, expect, also)


def _refuse_present(
    values: dict[str, Tree], absent: tuple[str, ...], objects: tuple[Thing, ...], faults: _Faults
) -> None:
    names = {_key(thing.name) for thing in objects}
    folded = [_key(name) for name in absent]
    for index, name in enumerate(absent):
        if folded[index] in names:
            faults.add(values["absent"].line, "absent", f"{name} is among the objects; take it out of one of the two.")
        if folded[index] in folded[:index]:
            faults.add(values["absent"].line, "absent", f"{name} stands there twice; remove one of them.")


def _key(name: str) -> str:
    """The same for what a question would name in the same words: `a cup`, `the cup`, `cups`."""
    return re.sub(r"^(an?|the) (?=.)|(?<=[a-z]{2})s$", "", fold(name))


def _values(entry: Keys, known: tuple[str, ...], prefix: str, faults: _Faults) -> dict[str, Tree]:
    """The entry's values by key; keys that nobody knows or that stand twice are faults."""
    values: dict[str, Tree] = {}
    for key, value in entry.pairs:
        name = key.value or ""
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"write {close[0]}" if close else f"the keys are {', '.join(known)}"
            faults.add(key.line, f"{prefix}{name}", f"no such key; {hint}.")
        elif name in values:
            faults.add(key.line, f"{prefix}{name}", "stands twice; remove one of them.")
        else:
            values[name] = value
    return values


def _list(values: dict[str, Tree], key: str, faults: _Faults) -> tuple[Tree, ...]:
    node = values.get(key)
    if node is None:
        return ()
    if not isinstance(node, Items) or not node.values:
        faults.add(node.line, key, f"must be a list with something in it; write `{key}:` and `- ...` below it.")
        return ()
    return node.values


def _text(
    values: dict[str, Tree], key: str, shown: str, line: int, faults: _Faults, *, needed: bool = False
) -> str | None:
    node = values.get(key)
    if node is None:
        if needed:
            faults.add(line, shown, "is missing; add it.")
        return None
    return _plain(node, shown, faults)


def _texts(values: dict[str, Tree], key: str, shown: str, faults: _Faults) -> tuple[str, ...]:
    node = values.get(key)
    if node is None:
        return ()
    if not isinstance(node, Items) or not node.values:
        faults.add(node.line, shown, f"must be a list of texts; write `{key}: [one, another]`.")
        return ()
    found = (_plain(item, shown, faults) for item in node.values)
    return tuple(text for text in found if text is not None)


def _plain(node: Tree, shown: str, faults: _Faults) -> str | None:
    """Text on one line that a dialogue and a probe file can hold."""
    text = " ".join(node.value.split()) if isinstance(node, Text) and node.value else ""
    if not text:
        faults.add(node.line, shown, "must be text and not empty; write the text, in quotes if it has signs of YAML.")
    elif CONTROL.search(text) or "\ufffd" in text:
        faults.add(node.line, shown, "holds characters that cannot be written; type it anew.")
    elif DEFAULT_IMAGE_TOKEN in text:
        faults.add(node.line, shown, f"holds {DEFAULT_IMAGE_TOKEN}, which stands for a picture; take it out.")
    elif found := PLACEHOLDER.search(text):
        faults.add(node.line, shown, f"holds {found[0]}, which probe files fill in; take the braces out.")
    else:
        return text
    return None
