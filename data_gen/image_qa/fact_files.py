"""Parse facts files (YAML, JSON, CSV) and remember the line of every value."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from tuning.errors import DataError
from tuning.yaml_files import YamlFile, parse_yaml, read_text

COLUMNS = ("image", "caption", "name", "color", "count", "place", "text", "ask", "answer", "source", "absent")
"""Columns of a CSV file. A row adds an object, a text, a question with its answer or an absent object to its picture.
A row without an image belongs to the picture of the row above."""


def read_fact_file(path: Path) -> YamlFile:
    """A file with the key `pictures` and a list of entries; the suffix selects YAML, JSON or CSV.

    Raises:
        DataError: the file cannot be read or is not in the format of its suffix; the message has the line.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".yaml", ".yml"):
        raise DataError(f"{path}: unknown suffix; write facts as .yaml, .json or .csv.")
    text = read_text(path, "facts file")
    if suffix == ".csv" and text.strip():
        file = YamlFile(str(path), _csv(path, text))
    else:
        if suffix == ".json":
            _check_json(path, text)
        file = parse_yaml(text, "facts file", DataError, where=str(path), as_text=True)
    values: Any = file.values
    if values is None:
        raise DataError(f"{path}: is empty; write `pictures:` and an entry for each picture.")
    if isinstance(values, dict):
        for key in map(str, cast(dict[Any, Any], values)):
            if key != "pictures":
                raise DataError(f"{file.at((key,))}: {key}: no such key; the only key of the file is `pictures`.")
    if not isinstance(values, dict) or not isinstance(file.values.get("pictures"), list) or not file.values["pictures"]:
        raise DataError(f"{path}, line 1: pictures: has no pictures; write `pictures:` and a list below it.")
    return file


def _check_json(path: Path, text: str) -> None:
    """Check that the text is JSON; the YAML parser, which reads it afterwards, accepts more."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); fix that line.") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be a facts file; flatten it.") from error


def _csv(path: Path, text: str) -> Any:
    """Rows grouped by picture, in the structure of a YAML facts file; a repeated value is kept once."""
    header = text.lstrip().partition("\n")[0]
    rows = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=header.count), strict=True)
    pictures: dict[str, Any] = {}
    document, name = CommentedMap(), ""
    for line, row in _rows(path, rows):
        name = row.get("image") or name
        if not name:
            raise DataError(f"{path}, line {line}: image: is missing; name the picture of the row.")
        if name not in pictures:
            pictures[name] = _mapping({"image": name}, line)
            _append(document, "pictures", pictures[name], line)
        picture = pictures[name]
        if caption := row.get("caption"):
            if picture.setdefault("caption", caption) != caption:
                raise DataError(f"{path}, line {line}: caption: appears twice for {name}; remove one of them.")
            picture.lc.add_kv_line_col("caption", [line - 1, 0])
        for key in ("text", "absent"):
            if value := row.get(key):
                _append(picture, key, value, line)
        for key, columns in (("objects", ("name", "color", "count", "place")), ("facts", ("ask", "answer", "source"))):
            if cells := {column: row[column] for column in columns if row.get(column)}:
                _append(picture, key, _mapping(cells, line), line)
    return document


def _mapping(values: dict[str, str], line: int) -> Any:
    """A mapping whose values are at `line`."""
    mapping: Any = CommentedMap(values)
    for key in values:
        mapping.lc.add_kv_line_col(key, [line - 1, 0])
    return mapping


def _append(mapping: Any, key: str, value: Any, line: int) -> None:
    """Add a value to the list under `key`, if the list does not have it yet."""
    if key not in mapping:
        mapping[key] = CommentedSeq()
        mapping.lc.add_kv_line_col(key, [line - 1, 0])
    if value not in mapping[key]:
        mapping[key].append(value)
        mapping[key].lc.add_idx_line_col(len(mapping[key]) - 1, [line - 1, 0])


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows as mappings of column to cell, each with its first line."""
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
                    raise DataError(f"{path}, line {line}: {twice[0]}: appears twice in the header; remove one.")
            elif any(cells):
                if len(cells) > len(columns):
                    raise DataError(
                        f"{path}, line {line}: has {len(cells)} cells for {len(columns)} columns; put text with commas "
                        "in quotes."
                    )
                yield line, dict(zip(columns, cells, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}); fix that line.") from error
