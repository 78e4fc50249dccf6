"""What is written about pictures, in YAML, JSON or CSV, as one tree that remembers the line of every value."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from tuning.errors import DataError

COLUMNS = ("image", "caption", "name", "color", "count", "place", "text", "ask", "answer", "source", "absent")
"""Of a CSV file. A row adds what it has to its picture: an object, a text, a question with its answer, a thing that
is absent; a row without an image goes on with the picture of the row above."""


@dataclass(frozen=True, slots=True)
class Text:
    """A single value as it was written, None where nothing stands."""

    value: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    values: "tuple[Tree, ...]"
    line: int


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping, its keys in order and perhaps twice."""

    pairs: "tuple[tuple[Text, Tree], ...]"
    line: int


Tree = Text | Items | Keys


def read_tree(path: Path) -> Tree:
    """The values of a file, whose ending says what it is: .yaml, .yml, .json or .csv.

    Raises:
        DataError: it cannot be read, or is not what its ending says; names the line.
    """
    readers = {".csv": _csv, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: its ending says no format; write facts as .yaml, .json or .csv.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a facts file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    if not text.strip():
        raise DataError(f"{path}: is empty; write `pictures:` and an entry for each picture.")
    return reader(path, text)


def _yaml(path: Path, text: str) -> Tree:
    try:
        yaml: Any = YAML()
        return _tree(yaml.compose(text), {})  # nodes, not values: they keep the line and the text as written
    except MarkedYAMLError as error:
        fault: Any = error
        line = fault.problem_mark.line + 1 if fault.problem_mark else 1
        raise DataError(f"{path}, line {line}: not valid YAML ({fault.problem}); mend that line.") from error
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not valid YAML ({reason}); save it as plain text.") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be facts; write a list of pictures.") from error


def _json(path: Path, text: str) -> Tree:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend that line.") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be facts; write a list of pictures.") from error
    return _yaml(path, text)


def _tree(node: Any, seen: dict[int, Tree]) -> Tree:
    """`seen` keeps what an alias stands for from being built once for every use."""
    if id(node) in seen:
        return seen[id(node)]
    line = 1 if node is None else _line(node)
    tree: Tree
    match node:
        case MappingNode():
            pairs: list[tuple[Any, Any]] = cast(Any, node).value
            tree = Keys(tuple((Text(_scalar(key), _line(key)), _tree(value, seen)) for key, value in pairs), line)
        case SequenceNode():
            values: list[Any] = cast(Any, node).value
            tree = Items(tuple(_tree(value, seen) for value in values), line)
        case _:
            tree = Text(_scalar(node), line)
    seen[id(node)] = tree
    return tree


def _line(node: Any) -> int:
    return node.start_mark.line + 1


def _scalar(node: Any) -> str | None:
    if not isinstance(node, ScalarNode):
        return None
    scalar: Any = node
    if str(scalar.tag).endswith(":null"):
        return None
    # JSON writes an emoji as two halves, which YAML does not join.
    return str(scalar.value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _csv(path: Path, text: str) -> Tree:
    """Rows gathered by picture, in the shape that YAML files have; what a row says again is said once."""
    header = text.lstrip().partition("\n")[0]
    rows = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=header.count), strict=True)
    gathered: dict[str, dict[str, dict[tuple[str, ...], Tree]]] = {}  # by picture, key, and what was written
    name = ""
    for line, row in _rows(path, rows):
        name = row.get("image") or name
        if not name:
            raise DataError(f"{path}, line {line}: image: is missing; name the picture that the row is about.")
        picture = gathered.setdefault(name, {"image": {(name,): Text(name, line)}})
        for key in ("caption", "text", "absent"):
            if value := row.get(key):
                picture.setdefault(key, {}).setdefault((value,), Text(value, line))
        for key, columns in (("objects", ("name", "color", "count", "place")), ("facts", ("ask", "answer", "source"))):
            if any(row.get(column) for column in columns):
                parts = tuple((Text(column, line), Text(row[column], line)) for column in columns if row.get(column))
                written = tuple(row.get(column, "") for column in columns)
                picture.setdefault(key, {}).setdefault(written, Keys(parts, line))
    entries = tuple(_entry(picture) for picture in gathered.values())
    return Keys(((Text("pictures", 1), Items(entries, 1)),), 1)


def _entry(picture: dict[str, dict[tuple[str, ...], Tree]]) -> Keys:
    pairs: list[tuple[Text, Tree]] = []
    for key, found in picture.items():
        values = tuple(found.values())
        if key in ("image", "caption"):  # a second caption is told as a key that stands twice
            pairs += [(Text(key, value.line), value) for value in values]
        else:
            pairs.append((Text(key, values[0].line), Items(values, values[0].line)))
    return Keys(tuple(pairs), pairs[0][0].line)


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row by column, and the line it begins at."""
    columns: list[str] = []
    try:
        line = 1
        for row in reader:
            cells: list[str] = [cell.strip() for cell in row]
            if any(cells) and not columns:
                columns = [cell.lower() for cell in cells]
                if unknown := [column for column in columns if column not in COLUMNS]:
                    raise DataError(
                        f"{path}, line {line}: {unknown[0] or 'a column without a name'}: no such column; "
                        f"the columns are {', '.join(COLUMNS)}."
                    )
                if twice := [column for column in columns if columns.count(column) > 1]:
                    raise DataError(f"{path}, line {line}: {twice[0]}: stands twice in the header; remove one of them.")
            elif any(cells):
                if len(cells) > len(columns):
                    raise DataError(
                        f"{path}, line {line}: has {len(cells)} cells for {len(columns)} columns; put text with commas "
                        "in quotes."
                    )
                yield line, dict(zip(columns, cells, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}); mend that line.") from error
