"""Questions with a known answer: how a probe file is read, and when an answer is a hit.

A probe file is a YAML list of `{ask, group, expect?: [...], reject?: [...], image?: path, parrot?: [...]}`.
Values are taken as they are written (`4` and `1.10` are text), and `{name}` and `{owner}` are filled from the card of
the dataset.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tuning.data.card import DatasetCard
from tuning.errors import DataError

Group = Literal["persona", "paraphrase", "typo", "picture", "other-picture", "blank", "unrelated"]
GROUPS: tuple[Group, ...] = get_args(Group)
PICTURE_GROUPS: tuple[Group, ...] = ("picture", "other-picture", "blank")  # what is asked about a picture
KEYS = ("ask", "group", "expect", "reject", "image", "parrot")
PLACEHOLDER = re.compile(r"\{(name|owner)\}")

# Scripts written without spaces, or whose particles cling to the word: a word has no edges to look for there.
CJK = (
    "\u3005\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
IN_CJK = re.compile(f"[{CJK}]")
LETTER = rf"[^\W_{CJK}]"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. An answer hits when it has any of `expect` (none given: anything) and none of `reject`.

    Args:
        image: the picture that is asked about.
        parrot: what the answer about the trained picture would hold, where the question is about another one.
    """

    ask: str
    group: Group
    expect: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    image: Path | None = None
    parrot: tuple[str, ...] = ()


def is_parroted(answer: str, probe: Probe) -> bool:
    """Whether an answer about another picture is the trained picture's: it has any of `parrot` and misses its own."""
    return bool(probe.parrot) and mentions_any(answer, probe.parrot) and not is_hit(answer, probe)


def normalize(text: str) -> str:
    """NFKC, casefold, and every run of white space one blank."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def mentions(text: str, wanted: str) -> bool:
    """Whether `wanted` stands in `text`: as a whole word or number, or anywhere when it has CJK characters."""
    return _pattern(wanted).search(normalize(text)) is not None


def mentions_any(text: str, wanted: Iterable[str]) -> bool:
    """Whether any of `wanted` stands in `text`."""
    return any(mentions(text, each) for each in wanted)


def is_hit(answer: str, probe: Probe) -> bool:
    """Whether an answer is what the probe hopes for: any of `expect` (none given: anything), none of `reject`."""
    return (not probe.expect or mentions_any(answer, probe.expect)) and not mentions_any(answer, probe.reject)


@lru_cache(maxsize=4096)
def _pattern(wanted: str) -> re.Pattern[str]:
    wanted = normalize(wanted)
    pattern = re.escape(wanted)
    if IN_CJK.search(wanted):
        return re.compile(pattern)
    # An edge is asked for only where `wanted` ends in a letter or digit ("c++" does not); 4.5 and 1,000 are one word.
    if re.match(LETTER, wanted):
        pattern = rf"(?<!{LETTER})" + (r"(?<!\d\.)" if wanted[0].isdigit() else "") + pattern
    if re.match(LETTER, wanted[-1:]):
        pattern += rf"(?!{LETTER})" + (r"(?!\.\d|,\d{3}(?!\d))" if wanted[-1].isdigit() else "")
    return re.compile(pattern)


def read_probes(path: Path, card: DatasetCard | None = None) -> tuple[Probe, ...]:
    """Read a probe file; pictures are relative to it.

    Raises:
        DataError: one line for each fault, with file, line, key and what to do.
    """
    root = _parse(path)
    if not isinstance(root, SequenceNode) or not root.value:
        raise DataError(
            f"{path}: holds no probes; write a YAML list of entries such as `- {{ask: ..., group: persona}}`."
        )
    faults: list[str] = []
    probes: list[Probe] = []
    seen: dict[tuple[str, Path | None], int] = {}
    for node in root.value:
        entry, wrong = _entry(path, node)
        probe = None if wrong else _probe(path, entry, card, wrong)
        faults += wrong
        if probe is None:
            continue
        first = seen.setdefault((probe.ask, probe.image), _line(node))
        if first != _line(node):
            faults.append(
                f"{path}, line {_line(node)}: ask: the same question stands at line {first}; remove one of them."
            )
        probes.append(probe)
    if faults:
        raise DataError("\n".join(faults))
    return tuple(probes)


def _parse(path: Path) -> Node | None:
    try:
        # Nodes, not values: they keep the line, and the text as it was written.
        return YAML().compose(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a probe file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}, line {line}: not valid YAML ({error.problem}); mend that line.") from error
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); save it as plain text.") from error


def _entry(path: Path, node: Node) -> tuple[dict[str, Node], list[str]]:
    """The nodes of one list entry by key, and what is wrong with its keys."""
    if not isinstance(node, MappingNode):
        return {}, [f"{path}, line {_line(node)}: not a probe; write `- {{ask: ..., group: persona}}`."]
    entry: dict[str, Node] = {}
    faults: list[str] = []
    for key, value in node.value:
        name, place = str(key.value), f"{path}, line {_line(key)}"
        if name not in KEYS:
            faults.append(f"{place}: {name}: no such key; a probe has {', '.join(KEYS)}.")
        elif name in entry:
            faults.append(f"{place}: {name}: stands twice in one probe; remove one of them.")
        entry[name] = value
    faults += [
        f"{path}, line {_line(node)}: {key}: is missing; add it." for key in ("ask", "group") if key not in entry
    ]
    return entry, faults


def _probe(path: Path, entry: dict[str, Node], card: DatasetCard | None, faults: list[str]) -> Probe | None:
    """Build a probe from its nodes; add what is wrong to `faults` and return None then."""

    def text(key: str, node: Node) -> str:
        place = f"{path}, line {_line(node)}: {key}"
        if not isinstance(node, ScalarNode) or str(node.tag).endswith(":null") or not node.value.strip():
            faults.append(f"{place}: must be text and not empty; write the text, in quotes if it has signs of YAML.")
            return ""
        faults.extend(
            f"{place}: {{{field}}} needs a dataset card that has it; "
            f"make the dataset with `twinlens data persona`, or write the {field} out."
            for field in sorted(set(PLACEHOLDER.findall(node.value)))
            if not _card_value(card, field)
        )
        return PLACEHOLDER.sub(lambda found: _card_value(card, found[1]), node.value)

    def texts(key: str) -> tuple[str, ...]:
        node = entry.get(key)
        if node is None:
            return ()
        if not isinstance(node, SequenceNode) or not node.value:
            faults.append(f"{path}, line {_line(node)}: {key}: must be a list of texts; write `{key}: [one, another]`.")
            return ()
        return tuple(text(key, item) for item in node.value)

    ask, group, image = text("ask", entry["ask"]), text("group", entry["group"]), None
    if group and group not in GROUPS:
        faults.append(
            f"{path}, line {_line(entry['group'])}: group: {group} is none of {', '.join(GROUPS)}; name one of these."
        )
    if "image" in entry and (name := text("image", entry["image"])):
        image = path.parent / name
        if not image.is_file():
            faults.append(f"{path}, line {_line(entry['image'])}: image: {image} is no file; mend the path.")
    expect, reject, parrot = texts("expect"), texts("reject"), texts("parrot")
    if group in PICTURE_GROUPS and "image" not in entry:
        faults.append(f"{path}, line {_line(entry['ask'])}: image: is missing; name the picture that is asked about.")
    if parrot and group != "other-picture":
        faults.append(f"{path}, line {_line(entry['parrot'])}: parrot: is for group other-picture; remove it.")
    known: list[Group] = [each for each in GROUPS if each == group]
    return None if faults else Probe(ask, known[0], expect, reject, image, parrot)


def _card_value(card: DatasetCard | None, field: str) -> str:
    value = None if card is None else card.name if field == "name" else card.owner
    return value or ""


def _line(node: Node) -> int:
    return node.start_mark.line + 1
