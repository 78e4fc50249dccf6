"""config.json of a model folder: one reader for all callers, with clear errors."""

import json
from pathlib import Path
from typing import Any, Literal

from tuning.errors import ModelError, first_line

CONFIG_FILE = "config.json"


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file of a model folder, which must hold an object.

    Raises:
        ModelError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not valid JSON ({first_line(error)}); get the model's files again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: not a JSON object; get the model's files again.")
    return values


def read_model_config(folder: Path) -> dict[str, Any]:
    """The values of a model folder's config.json.

    Raises:
        ModelError: as `read_json_object`.
    """
    return read_json_object(folder / CONFIG_FILE)


def model_type(folder: Path) -> str | None:
    """`model_type` of a model folder."""
    return read_model_config(folder).get("model_type")


def stored_dtype(folder: Path) -> Literal["fp32", "fp16", "bf16"]:
    """The dtype that a model's weights have on disk.

    Raises:
        ModelError: the weights are quantized.
    """
    config = read_model_config(folder)
    if "quantization_config" in config:
        raise ModelError(
            f"{folder}: is stored quantized, and what was trained would be lost in that; give its 16-bit original."
        )
    name = config.get("dtype") or config.get("torch_dtype")
    return "fp16" if name == "float16" else "fp32" if name == "float32" else "bf16"
