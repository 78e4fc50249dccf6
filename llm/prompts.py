"""Rehearsal prompts: YAML lists of questions that the base model answers."""

# pyright: reportUnknownMemberType=false

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from tuning.errors import ConfigError
from tuning.paths import resolve_path
from tuning.yaml_files import read_yaml

Prompts = tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...]


def read_prompts(files: Iterable[Path]) -> list[str]:
    """The distinct prompts of several files, in order.

    Raises:
        ConfigError: a file is missing or is not a list of texts.
    """
    prompts: dict[str, None] = {}
    for path in files:
        where = f"rehearsal.prompts: {path}"
        file = read_yaml(resolve_path(path), "list of prompts", ConfigError, where=where, as_text=True)
        if not isinstance(file.values, list) or not file.values:
            raise ConfigError(f"{where}: not a list of prompts; write one `- prompt` a line.")
        prompts |= dict.fromkeys(file.validate(Prompts) or ())
        file.raise_faults(ConfigError)
    return list(prompts)
