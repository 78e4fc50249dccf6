"""Load causal language models of transformers from a folder or a hub, without remote code."""

import logging
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from llm.chat_template.encoding import ChatTemplate
from llm.chat_template.named_templates import NAMED_TEMPLATES, named_template
from llm.checkpoints.config_json import read_model_config
from llm.checkpoints.embedded import EMBEDDED, embedded_folder
from llm.checkpoints.hub import fetch, parse_remote
from llm.checkpoints.shards import weight_files
from llm.internlm.loading import MODEL_TYPES, internlm_config, is_internlm, load_internlm
from llm.internlm.tokenizer import load_tokenizer
from tuning.errors import DeviceError, ModelError, first_line
from tuning.modules.quantize import (
    QuantReport,
    choose_compute_dtype,
    choose_device,
    prepare_quantized,
    quantization_config,
)
from tuning.settings import Quant

log = logging.getLogger("twinlens")
# Raised by the libraries for broken files.
_BROKEN_FILE_ERRORS = (
    *(OSError, ValueError, KeyError, ArithmeticError, RuntimeError),
    *(UnpicklingError, SafetensorError, StrictDataclassError),
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model, ready for generation or fine-tuning.

    Args:
        model: frozen, in eval mode, on `device`.
        template: the chat template with the task's system text.
        compute_dtype: dtype of the matrix products.
        name: as in the task; `folder` is the local folder.
        quant_report: which layers are 4- or 8-bit.
    """

    model: PreTrainedModel
    template: ChatTemplate
    device: torch.device
    compute_dtype: torch.dtype
    name: str
    folder: Path
    quant_report: QuantReport

    def release(self) -> None:
        """Free the memory of the weights, even if the model is still referenced. The model is unusable afterwards."""
        for parameter in self.model.parameters():
            parameter.data = torch.empty(0)


def model_folder(name: str, weights: bool = True) -> Path:
    """The local folder of a model; a hub or ModelScope name is downloaded first.

    Args:
        weights: False if only config and tokenizer are needed.

    Raises:
        ModelError: the folder contains no model, the download fails, or the model needs remote code.
    """
    if name == EMBEDDED:
        return embedded_folder()
    remote = parse_remote(name)
    folder = Path(name).expanduser() if remote is None else fetch(remote, weights=False)
    if folder.is_file():
        raise ModelError(f"model: {name}: this is a file; give the folder that contains config.json.")
    if not folder.is_dir():
        raise ModelError(
            f"model: {name}: no such folder; give a model folder, a hub name (owner/model), modelscope:owner/model or "
            "embedded."
        )
    _check_model_type(folder)
    if weights:
        folder = folder if remote is None else fetch(remote)
        weight_files(folder)
    return folder


def load_model_config(name: str) -> PreTrainedConfig:
    """The configuration of a model; InternLM's as a Llama configuration.

    Raises:
        ModelError: as `model_folder`, or the file cannot be used.
    """
    folder = model_folder(name, weights=False)
    if is_internlm(folder):
        return internlm_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _BROKEN_FILE_ERRORS as error:
        file = folder / "config.json"
        raise ModelError(f"{file}: cannot be used ({first_line(error)}); download the model again.") from error


def load_template(
    name: str, system: str | None, tokens_per_image: int = 0, template_name: str | None = None
) -> ChatTemplate:
    """A model's tokenizer and chat template, without its weights; see `ChatTemplate` for `tokens_per_image`.

    Args:
        template_name: a named template; None uses the model's own.

    Raises:
        ModelError: as `model_folder`, or the tokenizer cannot be read or has no chat template.
        ConfigError: no template has that name.
    """
    chosen = named_template(template_name) if template_name else None
    folder = model_folder(name, weights=False)
    tokenizer = load_tokenizer(folder)
    if chosen is None and not tokenizer.chat_template and is_internlm(folder):
        # Some InternLM checkpoints have their chat template only as code; a special token shows the version.
        for token, family in (("<eoa>", "internlm"), ("<|im_end|>", "internlm2_chat")):
            if chosen is None and token in tokenizer.all_special_tokens:
                chosen = NAMED_TEMPLATES[family]
    return ChatTemplate(tokenizer, system, tokens_per_image, chosen)


def log_system(template: ChatTemplate) -> None:
    """Log the system text, and whether the task or the chat template sets it."""
    if template.system:
        log.info("system text from the task: %r", template.system)
    elif injected := template.default_system():
        log.info("system text from the model's chat template: %r; set `system` in the task to change it", injected)


def load_model(
    name: str, template: ChatTemplate, quant: Quant, device: str = "auto", *, full_finetuning: bool = False
) -> LoadedModel:
    """Load a model with the given quantization, and log which layers are quantized.

    Args:
        full_finetuning: store the weights in fp32 for training, with any compute dtype.

    Raises:
        ModelError: the model is missing, incomplete, or needs remote code.
        DeviceError: no such device, or it has too little memory.
    """
    folder = model_folder(name)
    target_device = choose_device(device)
    compute_dtype = choose_compute_dtype(quant.compute, target_device)
    skip_modules = ("lm_head", "output_layer", "embed_out")
    silence_libraries()
    try:
        loader = load_internlm if is_internlm(folder) else AutoModelForCausalLM.from_pretrained
        model = loader(
            folder,
            dtype=torch.float32 if full_finetuning else compute_dtype,
            quantization_config=quantization_config(quant, compute_dtype, skip_modules),
            device_map={"": target_device},
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"model: {name}: does not fit on {target_device}; set quant.bits=4 or use a smaller model."
        ) from error
    except _BROKEN_FILE_ERRORS as error:
        raise ModelError(f"model: {name}: cannot be loaded ({first_line(error)}); check the folder's files.") from error
    model.requires_grad_(False)
    model.eval()
    model.generation_config = make_generation_config(template, model.config)
    report = prepare_quantized(model, quant.bits, skip_modules, compute_dtype)
    log.info(
        "model: %s on %s, computing in %s: %s", name, target_device, str(compute_dtype).removeprefix("torch."), report
    )
    return LoadedModel(model, template, target_device, compute_dtype, name, folder, report)


def make_generation_config(template: ChatTemplate, config: PreTrainedConfig) -> GenerationConfig:
    """The generation settings of a model: the stop tokens of its chat template."""
    return GenerationConfig(
        eos_token_id=list(template.stop_ids),
        pad_token_id=template.pad_id,
        bos_token_id=config.get_text_config().bos_token_id,
    )


def silence_libraries() -> None:
    """Turn off progress bars and hints of transformers, because our own log has the same information."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _check_model_type(folder: Path) -> None:
    """Refuse a folder without config.json, or a model type that transformers cannot load without remote code."""
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"model: {folder}: config.json is missing; give the folder of a model in Hugging Face layout.")
    config = read_model_config(folder)
    kind = config.get("model_type")
    if kind not in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_TYPES):
        why = (
            "needs remote code (auto_map), which twinlens never runs"
            if "auto_map" in config
            else "is not a causal language model of transformers"
        )
        raise ModelError(f"{path}: model_type {kind!r} {why}; use another model.")
