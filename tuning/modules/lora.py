"""LoRA adapters in PEFT's format: attach, save with reproducible bytes, load, check against the model."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from tuning.atomic import atomic_writer, write_atomically
from tuning.errors import ConfigError, ModelError, first_line
from tuning.modules.pth import read_pth, state_dict_in
from tuning.settings import Lora

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_WEIGHTS_PICKLED = "adapter_model.bin"  # the file of older PEFT and of XTuner
PEFT_PREFIX = "base_model.model."  # prefix of every weight name that PEFT saves
ADAPTER_CONFIG = "adapter_config.json"


def attach_adapter(
    model: PreTrainedModel,
    lora: Lora,
    seed: int,
    task_type: str | None = "CAUSAL_LM",
    unused_modules: Sequence[str] = (),
) -> PeftModel:
    """Attach a new adapter to every linear layer except the head. Its weights are fp32 for any dtype of the base.

    Args:
        task_type: None if the model is no language model.
        unused_modules: names of layers that never run and get no adapter.

    Raises:
        ConfigError: `lora.targets` names layers that the model does not have.
    """
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = lora_config(lora, targets, task_type, unused_modules)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ConfigError(f"lora.targets: {targets}: the model has no such layers; set all-linear.") from error


def lora_config(
    lora: Lora, targets: str | list[str], task_type: str | None, unused_modules: Sequence[str] = ()
) -> LoraConfig:
    """PEFT's configuration of an adapter; arguments as in `attach_adapter`."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        exclude_modules=list(unused_modules) or None, task_type=task_type,
    )  # fmt: skip


def target_names(weights: Iterable[str]) -> list[str]:
    """The names of the layers to which an adapter's weights belong."""
    return sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})


def save_adapter(model: PeftModel, folder: Path, base: str, revision: str | None = None) -> None:
    """Write `adapter_model.safetensors` in fp32, and `adapter_config.json` with sorted lists and the base's name."""
    write_adapter(get_peft_model_state_dict(model), model.peft_config["default"], folder, base, revision)


def write_adapter(
    weights: Mapping[str, Tensor], config: PeftConfig, folder: Path, base: str, revision: str | None = None
) -> None:
    """As `save_adapter`, for weights without a model, by the names that PEFT saves."""
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in weights.items()}
    with atomic_writer(folder / ADAPTER_WEIGHTS) as stream:
        stream.write(save(dict(sorted(state.items())), metadata={"format": "pt"}))
    values = config.to_dict() | {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set | list) else value for key, value in values.items()}
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")


def read_adapter_config(folder: Path) -> dict[str, object]:
    """The adapter's configuration.

    Raises:
        ModelError: the folder contains no LoRA adapter, or its configuration or weights are broken.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{folder}: contains no adapter ({ADAPTER_CONFIG} is missing); give a run folder or an adapter folder."
        ) from error
    except ValueError as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: not valid JSON ({error}); save the adapter again.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder / ADAPTER_CONFIG}: not a LoRA adapter; twinlens reads LoRA in PEFT's layout.")
    for key in ("r", "lora_alpha"):
        if not isinstance(value := config.get(key), int | float) or value <= 0:
            raise ModelError(
                f"{folder / ADAPTER_CONFIG}: {key} must be a number above 0 (got {value!r}); save the adapter again."
            )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise ModelError(f"{folder / ADAPTER_CONFIG}: {key} must be a mapping; save the adapter again.")
    if not any((folder / name).exists() for name in (ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_PICKLED)):
        raise ModelError(f"{folder}: {ADAPTER_WEIGHTS} is missing; save the adapter again.")
    if (file := folder / ADAPTER_WEIGHTS).exists():
        with _explain_read_errors(file), safe_open(file, "pt"):
            pass
    return config


@contextmanager
def _explain_read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); save the adapter again.") from error


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """An adapter's weights by PEFT's names; a pickled file is read without running code.

    Raises:
        ModelError: there are none, or their file is broken.
    """
    file, pickled = folder / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS_PICKLED
    if pickled.exists() and not file.exists():
        return state_dict_in(read_pth(pickled), pickled)
    with _explain_read_errors(file):
        return load_file(file)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base model with a saved adapter, in eval mode.

    Raises:
        ModelError: the folder contains no adapter, or one for a model of other layers or shapes.
    """
    read_adapter_config(folder)
    with _explain_mismatch(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.base_model_name_or_path = None  # otherwise PEFT warns if the base is in another place now
    return _load_into_new_adapter(model, config, read_adapter_weights(folder), str(folder))


def attach_adapter_weights(
    model: PreTrainedModel, state: Mapping[str, Tensor], values: Mapping[str, Any], source: str
) -> PeftModel:
    """The base model with an adapter from memory, in eval mode, on the layers that the weights name.

    Args:
        values: the content of adapter_config.json; only rank and scale are used.
        source: name of the adapter in errors.

    Raises:
        ModelError: it is for a model of other layers or shapes, or contains more than LoRA's two matrices.
    """
    if values.get("use_dora") or any(".lora_A." not in name and ".lora_B." not in name for name in state):
        raise ModelError(f"{source}: has more than LoRA's two matrices for each layer; only those can be moved.")
    config = LoraConfig(
        r=values["r"],
        lora_alpha=values["lora_alpha"],
        use_rslora=bool(values.get("use_rslora")),
        rank_pattern=values.get("rank_pattern") or {},
        alpha_pattern=values.get("alpha_pattern") or {},
        target_modules=sorted({name.split(".lora_")[0].removeprefix(PEFT_PREFIX) for name in state}),
        inference_mode=True,
    )
    return _load_into_new_adapter(model, config, state, source)


def _load_into_new_adapter(
    model: PreTrainedModel, config: PeftConfig, state: Mapping[str, Tensor], source: str
) -> PeftModel:
    with _explain_mismatch(source):
        adapted = get_peft_model(model, config)
        found = set_peft_model_state_dict(adapted, dict(state))
    for names, fault in ((found.missing_keys, "missing"), (found.unexpected_keys, "too many")):
        if wrong := sorted(name for name in names if "lora_" in name):  # PEFT ignores them or only warns
            raise _mismatch(source, f"{wrong[0].replace('.default', '')} is {fault}")
    assert isinstance(adapted, PeftModel)
    return adapted.eval()


@contextmanager
def _explain_mismatch(source: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise _mismatch(source, first_line(error)) from error


def _mismatch(source: str, reason: str) -> ModelError:
    return ModelError(f"{source}: this adapter does not fit the model ({reason}); use the base it was trained on.")
