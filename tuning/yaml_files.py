"""YAML files, validated by pydantic: one sentence per fault, with file, line, key and fix."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from tuning.errors import DataError, KitError

Model = TypeVar("Model")
Loc = tuple[int | str, ...]
UNION_TAGS = ("all-linear", "tuple[str, ...]", "literal['all-linear']")  # pydantic's names for the members of a union

FIXES = {
    "missing": "is missing; add it.",
    "string_type": "must be text and not empty; write the text, in quotes if it contains YAML syntax.",
    "dict_type": "must be a mapping; write its entries as `name: {{key: value}}`.",
    "tuple_type": "must be a list; write it in brackets, such as [{value}].",
    "too_short": "is an empty list; write at least one value.",
}


class TextResolver(VersionedResolver):
    """Reads every scalar except null as text: `4`, `1.10` and `yes` become strings."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        return tag if kind is not ScalarNode or str(tag).endswith(":null") else self.DEFAULT_SCALAR_TAG


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The values of a YAML file, and the faults found in them.

    Args:
        where: the file, as error messages name it.
        values: mappings and sequences of ruamel, which record the line of each value.
        faults: one sentence per fault.
    """

    where: str
    values: Any
    faults: list[str] = field(default_factory=list[str])

    def line(self, loc: Loc) -> int | None:
        """Line number of the value at `loc`, or of the innermost enclosing value that has one."""
        line, value = None, self.values
        for part in loc:
            marks = getattr(getattr(value, "lc", None), "data", None) or {}
            if part not in marks:
                break
            line, value = marks[part][0] + 1, value[part]
        return line

    def at(self, loc: Loc) -> str:
        """Position of the value at `loc`, such as `facts.yaml, line 3`."""
        line = self.line(loc)
        return self.where if line is None else f"{self.where}, line {line}"

    def add_fault(self, loc: Loc, key: str, sentence: str) -> None:
        """Record a fault of the value at `loc`; `key` is its name in the message."""
        self.faults.append(f"{self.at(loc)}: {key}: {sentence}" if key else f"{self.at(loc)}: {sentence}")

    def raise_faults(self, error: type[KitError] = DataError) -> None:
        """Raise all recorded faults as one error, one line each; do nothing if there are none."""
        if self.faults:
            raise error("\n".join(self.faults))

    def validate(
        self,
        model: type[Model],
        loc: Loc = (),
        *,
        context: Any = None,
        other_names: Mapping[str, str] | None = None,
    ) -> Model | None:
        """Build a model from the value at `loc`. If it is not valid, record its faults and return None.

        Args:
            context: passed to the validators of the model.
            other_names: names of keys in other tools -> key here; hints for unknown keys.
        """
        value = self.values
        for part in loc:
            value = value[part]
        try:
            return _adapter(model).validate_python(value, context=context)
        except ValidationError as error:
            for fault in error.errors():
                key = ".".join(part for part in fault["loc"] if isinstance(part, str) and part not in UNION_TAGS)
                self.add_fault((*loc, *fault["loc"]), key, _sentence(model, fault, other_names or {}))
            return None


def read_text(path: Path, kind: str, error_type: type[KitError] = DataError, where: str = "") -> str:
    """Read the UTF-8 text of a file; arguments and errors as in `read_yaml`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise error_type(f"{where or path}: cannot be read ({error.strerror}); give the path of a {kind}.") from error
    except UnicodeDecodeError as error:
        raise error_type(f"{where or path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def read_yaml(
    path: Path, kind: str, error_type: type[KitError] = DataError, *, where: str = "", as_text: bool = False
) -> YamlFile:
    """Read a YAML or JSON file.

    Args:
        kind: type of the file, for messages, such as `task file`.
        where: the file, as error messages name it; default: the path.
        as_text: read every scalar except null as text.

    Raises:
        KitError: an error of `error_type`; the file is missing, is not UTF-8 or is not YAML.
    """
    where = where or str(path)
    return parse_yaml(read_text(path, kind, error_type, where), kind, error_type, where=where, as_text=as_text)


def parse_yaml(text: str, kind: str, error_type: type[KitError], *, where: str, as_text: bool = False) -> YamlFile:
    """Parse the text of a YAML or JSON file; arguments and errors as in `read_yaml`."""
    yaml: Any = YAML()
    if as_text:
        yaml.Resolver = TextResolver
    try:
        return YamlFile(where, yaml.load(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).partition(" with value ")[0]  # the values of a duplicate key can be long
        raise error_type(f"{where}, line {line}: not valid YAML ({problem}); fix that line.") from error
    except YAMLError as error:
        raise error_type(f"{where}: not valid YAML ({str(error).splitlines()[0]}); save it as plain text.") from error
    except RecursionError as error:
        raise error_type(f"{where}: is nested too deeply to be a {kind}; flatten it.") from error


_adapter = lru_cache(TypeAdapter)  # building one is slow


def _sentence(model: Any, fault: Any, other_names: Mapping[str, str]) -> str:
    """The fault of one value, and the fix."""
    kind, loc, value = fault["type"], fault["loc"], fault["input"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        key, keys = str(loc[-1]), list(_fields(_owner(model, loc)))
        if key in other_names:
            return f"no such key; its name here is {other_names[key]}."
        close = difflib.get_close_matches(key, keys, n=1)
        return f"no such key; write {close[0]}." if close else f"no such key; the keys are {', '.join(keys)}."
    if kind in ("model_type", "dataclass_type"):
        keys = ", ".join(f"{key}: ..." for key in list(_fields(_owner(model, (*loc, ""))))[:2])
        return f"must be a mapping; write {{{keys}}}."
    if kind in FIXES:
        return FIXES[kind].format(value=value)
    shown = f" (got {value!r})" if isinstance(value, (str, int, float, bool, type(None))) else ""
    return f"{fault['msg'].removeprefix('Value error, ').rstrip('.')}{shown}."


def _owner(model: Any, loc: Loc) -> Any:
    """The model that has the last key of `loc` as a field."""
    for part in loc[:-1]:
        model = next(_models(_fields(model).get(str(part))), model)
    return model


def _models(annotation: Any) -> Iterator[Any]:
    """The models inside an annotation such as `Lora | None` or `tuple[Fact, ...]`."""
    if _fields(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _fields(model: Any) -> dict[str, Any]:
    """Field names and annotations of a model; an empty dict for another type."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: each.annotation for name, each in model.model_fields.items()}
    return {each.name: each.type for each in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
