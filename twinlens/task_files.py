"""The task files that ship with the kit: finding them, and copying them with every setting explained."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from llm.settings import TextTask
from tuning.errors import ConfigError
from tuning.paths import CONFIGS
from tuning.settings import apply_overrides, read_yaml, settings_group_of, validate_settings
from twinlens.tasks import AnyTask
from twinlens.xtuner.configs.mapping import map_config
from vlm.settings import ImageTask

# The folder under configs/, and what its files are read as.
TASK_TYPES: dict[str, type[AnyTask]] = {"text": TextTask, "image": ImageTask}


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """A task as a file and overrides give it.

    Args:
        changes: what each override changed.
        differs: of an XTuner config, what does not carry over as it stands.
    """

    task: AnyTask
    changes: list[str]
    differs: tuple[str, ...]


def open_task(file: Path, overrides: Sequence[str] = ()) -> OpenedTask:
    """Read a task of either path, one with a tower being an image task; an XTuner config is mapped to one.

    Args:
        file: the user's own, or a shipped one by name; see `find_config`.

    Raises:
        ConfigError: one line for each fault.
    """
    found = find_config(file)
    if found.suffix == ".py":
        mapped = map_config(found)
        document, differs = CommentedMap(mapped.document), mapped.differences
    else:
        document, differs = read_yaml(found), ()
    changes = apply_overrides(document, overrides)
    kind = ImageTask if "tower" in document else TextTask
    return OpenedTask(validate_settings(document, kind, str(found)), changes, differs)


def read_task(file: Path, overrides: Sequence[str] = ()) -> tuple[AnyTask, list[str]]:
    """A task, and what each override changed; see `open_task`."""
    opened = open_task(file, overrides)
    return opened.task, opened.changes


def shipped_tasks() -> dict[str, Path]:
    """Task files that come with the kit, by the name that `list-cfg` prints."""
    return {file.stem: file for kind in TASK_TYPES for file in sorted((CONFIGS / kind).glob("*.yaml"))}


def find_config(file: Path) -> Path:
    """A task file: the user's own, or a shipped one by its name or its path from the root of the project.

    XTuner's names may end in .py, as its own configs do.

    Raises:
        ConfigError: it is neither.
    """
    if file.is_file():
        return file
    inside = Path(*file.parts[1:]) if file.parts[:1] == (CONFIGS.name,) else file
    for found in (shipped_tasks().get(str(file).removesuffix(".py")), CONFIGS / inside):
        if found and found.is_file():
            return found
    raise ConfigError(f"{file}: neither a file nor a shipped task; `twinlens list-cfg` lists those.")


def describe(file: Path) -> str:
    """The first line of a task file's header."""
    with file.open(encoding="utf-8") as stream:
        return stream.readline().lstrip("#").strip()


def explain(file: Path) -> str:
    """A shipped task file with a comment above each key, and the settings left at their defaults as comments.

    Such a default has its key right after the `#`, so that taking the `#` away sets it; explanations have a blank.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    document = read_yaml(file)
    fields = TASK_TYPES[file.parent.name].model_fields
    inserted: defaultdict[int, list[str]] = defaultdict(list)
    for key in document:
        field = fields[key]
        inserted[document.lc.key(key)[0]].append(f"# {_help(field)}")
        for inner, setting in (_settings(field) if document[key] is not None else {}).items():
            given = inner in document[key]
            place = document[key].lc.key(inner)[0] if given else _end(document, key, lines)
            inserted[place].append(f"  # {_help(setting)}")
            if not given:
                inserted[place].append(f"  #{_default(inner, setting)}")
    for key, field in fields.items():
        if key not in document:
            inserted[len(lines)] += _absent(key, field)
    explained = [text for number, line in enumerate(lines) for text in (*inserted[number], line)]
    return "\n".join([*explained, *inserted[len(lines)]]) + "\n"


def _absent(key: str, field: FieldInfo) -> list[str]:
    settings = _settings(field)
    lines = [f"# {_help(field)}", f"#{key}:" if settings else f"#{_default(key, field)}"]
    for inner, setting in settings.items():
        lines += [f"  # {_help(setting)}", f"#  {_default(inner, setting)}"]
    return lines


def _settings(field: FieldInfo) -> dict[str, FieldInfo]:
    """The fields of a block; none where the field is a value."""
    block = settings_group_of(field)
    return block.model_fields if block else {}


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
    """The line after a block: before the next key, and before the comment or blank line that leads to it."""
    starts = sorted(document.lc.key(each)[0] for each in document)
    following = starts.index(document.lc.key(key)[0]) + 1
    end = starts[following] if following < len(starts) else len(lines)
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    return end
