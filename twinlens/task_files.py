"""Task files: read a task, find the shipped task files, copy one with added explanations."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from llm.settings import TextTask
from tuning.errors import ConfigError
from tuning.paths import CONFIGS
from tuning.settings import apply_overrides, read_task_document, settings_group_of, validate_settings
from twinlens.tasks import AnyTask
from twinlens.xtuner.configs.mapping import map_config
from vlm.settings import ImageTask

# Folder under configs/ -> settings class of its files.
TASK_TYPES: dict[str, type[AnyTask]] = {"text": TextTask, "image": ImageTask}


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """A task read from a file, with overrides applied.

    Args:
        changes: old and new value of each override.
        differs: settings of an XTuner config that do not carry over unchanged.
    """

    task: AnyTask
    changes: list[str]
    differs: tuple[str, ...]


def open_task(file: Path, overrides: Sequence[str] = ()) -> OpenedTask:
    """Read a task file or map an XTuner config to a task; a task with the key `tower` is an image task.

    Args:
        file: a user's file, or a shipped task by name; see `find_config`.

    Raises:
        ConfigError: one line for each fault.
    """
    path = find_config(file)
    if path.suffix == ".py":
        mapped = map_config(path)
        document, differs = CommentedMap(mapped.document), mapped.differences
    else:
        document, differs = read_task_document(path), ()
    changes = apply_overrides(document, overrides)
    task_type = ImageTask if "tower" in document else TextTask
    return OpenedTask(validate_settings(document, task_type, str(path)), changes, differs)


def read_task(file: Path, overrides: Sequence[str] = ()) -> tuple[AnyTask, list[str]]:
    """A task and what each override changed; see `open_task`."""
    opened = open_task(file, overrides)
    return opened.task, opened.changes


def shipped_tasks() -> dict[str, Path]:
    """Shipped task files by the name that `list-cfg` prints."""
    return {file.stem: file for folder in TASK_TYPES for file in sorted((CONFIGS / folder).glob("*.yaml"))}


def find_config(file: Path) -> Path:
    """Path of a task file: a user's file, or a shipped one by its name or its path from the project root.

    A shipped name may end in .py, as names of XTuner configs do.

    Raises:
        ConfigError: neither exists.
    """
    if file.is_file():
        return file
    inside = Path(*file.parts[1:]) if file.parts[:1] == (CONFIGS.name,) else file
    shipped = shipped_tasks().get(str(file).removesuffix(".py"), CONFIGS / inside)
    if shipped.is_file():
        return shipped
    raise ConfigError(f"{file}: neither a file nor a shipped task; `twinlens list-cfg` lists the shipped tasks.")


def describe(file: Path) -> str:
    """The first line of a task file's header."""
    with file.open(encoding="utf-8") as stream:
        return stream.readline().lstrip("#").strip()


def explain(file: Path) -> str:
    """Text of a shipped task file with a comment above each key; settings at their defaults are added as comments.

    In such a comment the key follows the `#` directly, so removing the `#` sets it; explanations have a blank there.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    document = read_task_document(file)
    fields = TASK_TYPES[file.parent.name].model_fields
    inserted: defaultdict[int, list[str]] = defaultdict(list)  # line number -> comment lines above it
    for key in [*document, *(key for key in fields if key not in document)]:
        present, field = key in document, fields[key]
        group = settings_group_of(field)
        key_line = document.lc.key(key)[0] if present else len(lines)
        inserted[key_line].append(f"# {_help(field)}")
        if not present:
            inserted[key_line].append(f"#{key}:" if group else f"#{_default(key, field)}")
        elif group is None or document[key] is None:
            continue
        for name, setting in group.model_fields.items() if group else ():
            is_set = present and name in document[key]
            line = document[key].lc.key(name)[0] if is_set else _end(document, key, lines) if present else len(lines)
            inserted[line].append(f"  # {_help(setting)}")
            if not is_set:
                inserted[line].append(f"{'  #' if present else '#  '}{_default(name, setting)}")
    inserted_lines = ([*inserted[number], line] for number, line in enumerate(lines))
    return "\n".join([*chain.from_iterable(inserted_lines), *inserted[len(lines)]]) + "\n"


def _help(field: FieldInfo) -> str:
    return " ".join((field.description or getattr(field.annotation, "__doc__", None) or "").split())


def _default(key: str, field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    stream = io.StringIO()
    yaml.dump([list(value) if isinstance(value, tuple) else value], stream)
    return f"{key}: {stream.getvalue().strip()[1:-1]}"  # without the brackets of the list that it was dumped in


def _end(document: CommentedMap, key: str, lines: list[str]) -> int:
    """Number of the line after a group, before blank lines and the comments of the next key."""
    start = document.lc.key(key)[0]
    end = min((line for other in document if (line := document.lc.key(other)[0]) > start), default=len(lines))
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    return end
