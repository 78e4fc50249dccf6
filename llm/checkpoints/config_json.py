"""Read config.json of a model folder, with clear errors."""

import json
from pathlib import Path
from typing import Any

from tuning.errors import ModelError, first_line


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        ModelError: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not valid JSON ({first_line(error)}); download the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: not a JSON object; download the model again.")
    return values


def read_model_config(folder: Path) -> dict[str, Any]:
    """The values of a model folder's config.json.

    Raises:
        ModelError: as `read_json_object`.
    """
    return read_json_object(folder / "config.json")


def model_type(folder: Path) -> str | None:
    """`model_type` of a model folder."""
    return read_model_config(folder).get("model_type")
