"""Probes (test questions with known answers): read probe files, score answers.

A probe file is a YAML list of `{ask, group, expect?: [...], reject?: [...], image?: path, parrot?: [...]}`.
Values are read as text (`4`, `1.10`). `{name}` and `{owner}` are replaced by values of the dataset card.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo

from tuning.data.card import DatasetCard
from tuning.errors import DataError
from tuning.yaml_files import read_yaml

Group = Literal["persona", "paraphrase", "typo", "picture", "other-picture", "blank", "unrelated"]
GROUPS: tuple[Group, ...] = get_args(Group)
PICTURE_GROUPS: tuple[Group, ...] = ("picture", "other-picture", "blank")  # questions about a picture
PLACEHOLDER = re.compile(r"\{(name|owner)\}")

# Scripts without spaces between words, or with particles attached to words: words have no boundaries.
CJK = (
    "\u3005\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
IN_CJK = re.compile(f"[{CJK}]")
LETTER = rf"[^\W_{CJK}]"


def _filled_text(text: str, info: ValidationInfo) -> str:
    """The text with `{name}` and `{owner}` replaced by values of the card."""
    context: Any = info.context
    if not text.strip():
        raise ValueError("must be text and not empty; write the text")
    for field in sorted(set(PLACEHOLDER.findall(text))):
        value = getattr(context["card"], field, None)
        if not value:
            raise ValueError(
                f"{{{field}}} needs a dataset card with this value; "
                f"create the dataset with `twinlens data persona`, or write the {field} itself"
            )
        text = text.replace(f"{{{field}}}", value)
    return text


def _existing_picture(name: Any, info: ValidationInfo) -> Any:
    if not isinstance(name, str) or not name.strip():
        raise ValueError("must be the path of a picture; write the path")
    context: Any = info.context
    path = context["folder"] / _filled_text(name, info)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; fix the path")
    return path


Text = Annotated[str, AfterValidator(_filled_text)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. An answer is a hit if it contains any of `expect` and none of `reject`.

    Without `expect`, every answer without `reject` is a hit.

    Args:
        image: the picture of the question.
        parrot: terms of the answer about the trained picture, if the question is about another picture.
    """

    ask: Text
    group: Group
    expect: Texts = ()
    reject: Texts = ()
    image: Annotated[Path | None, BeforeValidator(_existing_picture)] = None
    parrot: Texts = ()

    __pydantic_config__ = ConfigDict(extra="forbid")


def is_parroted(answer: str, probe: Probe) -> bool:
    """Whether an answer repeats the answer about the trained picture: it contains any of `parrot` and is no hit."""
    return bool(probe.parrot) and mentions_any(answer, probe.parrot) and not is_hit(answer, probe)


def normalize(text: str) -> str:
    """The text in NFKC, casefolded, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def mentions(text: str, term: str) -> bool:
    """Whether `text` contains `term`: as a full word or number, or anywhere if the term has CJK characters."""
    return _pattern(term).search(normalize(text)) is not None


def mentions_any(text: str, terms: Iterable[str]) -> bool:
    """Whether `text` contains any of `terms`."""
    return any(mentions(text, term) for term in terms)


def is_hit(answer: str, probe: Probe) -> bool:
    """Whether an answer contains any of `expect`, if there are any, and none of `reject`."""
    return (not probe.expect or mentions_any(answer, probe.expect)) and not mentions_any(answer, probe.reject)


@lru_cache(maxsize=4096)
def _pattern(term: str) -> re.Pattern[str]:
    term = normalize(term)
    pattern = re.escape(term)
    if IN_CJK.search(term):
        return re.compile(pattern)
    # A boundary is required only next to a letter or digit ("c++" ends with neither). 4.5 and 1,000 are one word.
    if re.match(LETTER, term):
        pattern = rf"(?<!{LETTER})" + (r"(?<!\d\.)" if term[0].isdigit() else "") + pattern
    if re.match(LETTER, term[-1:]):
        pattern += rf"(?!{LETTER})" + (r"(?!\.\d|,\d{3}(?!\d))" if term[-1].isdigit() else "")
    return re.compile(pattern)


def read_probes(path: Path, card: DatasetCard | None = None) -> tuple[Probe, ...]:
    """Read a probe file. Paths of pictures are relative to its folder.

    Raises:
        DataError: the file has faults; one line for each, with file, line, key and fix.
    """
    file = read_yaml(path, "probe file", as_text=True)
    if not isinstance(file.values, list) or not file.values:
        raise DataError(
            f"{path}: has no probes; write a YAML list of entries such as `- {{ask: ..., group: persona}}`."
        )
    probes: list[Probe] = []
    lines: dict[tuple[str, Path | None], int | None] = {}
    for index in range(len(file.values)):
        probe = file.validate(Probe, (index,), context={"card": card, "folder": path.parent})
        if probe is None:
            continue
        if probe.group in PICTURE_GROUPS and probe.image is None:
            file.add_fault((index, "ask"), "image", "is missing; give the path of the picture.")
        if probe.parrot and probe.group != "other-picture":
            file.add_fault((index, "parrot"), "parrot", "is only for group other-picture; remove it.")
        if (question := (probe.ask, probe.image)) in lines:
            repeated = f"the same question is at line {lines[question]}; remove one of them."
            file.add_fault((index,), "ask", repeated)
        lines.setdefault(question, file.line((index,)))
        probes.append(probe)
    file.raise_faults()
    return tuple(probes)
