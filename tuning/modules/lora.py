"""LoRA adapters in PEFT's layout: attach in fp32, save with reproducible bytes, load, check."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tuning.atomic import atomic_writer, write_atomically
from tuning.errors import ConfigError, ModelError
from tuning.modules.pth import read_pth, state_dict_in
from tuning.settings import Lora

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_WEIGHTS_PICKLED = "adapter_model.bin"  # as older PEFT and XTuner write it
PEFT_PREFIX = "base_model.model."  # of every weight that PEFT saves
ADAPTER_CONFIG = "adapter_config.json"


def attach_adapter(
    model: PreTrainedModel,
    lora: Lora,
    seed: int,
    task_type: str | None = "CAUSAL_LM",
    unused_modules: Sequence[str] = (),
) -> PeftModel:
    """A fresh adapter on every linear but the head, its weights fp32 whatever the base computes in.

    Args:
        task_type: None for a model that is no language model.
        unused_modules: names of layers that never run; they get no adapter.

    Raises:
        ConfigError: `lora.targets` names layers that the model does not have.
    """
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = lora_config(lora, targets, task_type, unused_modules)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ConfigError(f"lora.targets: {targets}: the model has no such layers; take all-linear.") from error
    assert isinstance(adapted, PeftModel)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def lora_config(
    lora: Lora, targets: str | list[str], task_type: str | None, unused_modules: Sequence[str] = ()
) -> LoraConfig:
    """PEFT's settings of an adapter; arguments as `attach_adapter` takes them."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        exclude_modules=list(unused_modules) or None, task_type=task_type,
    )  # fmt: skip


def target_names(weights: Iterable[str]) -> list[str]:
    """The names of the layers that an adapter's weights are for."""
    return sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})


def save_adapter(model: PeftModel, folder: Path, base: str, revision: str | None = None) -> None:
    """`adapter_model.safetensors` (fp32) and `adapter_config.json`, lists sorted, naming the base it belongs to."""
    from peft import get_peft_model_state_dict

    write_adapter(get_peft_model_state_dict(model), model.peft_config["default"], folder, base, revision)


def write_adapter(
    weights: Mapping[str, Tensor], config: PeftConfig, folder: Path, base: str, revision: str | None = None
) -> None:
    """As `save_adapter`, of weights that no model of ours holds, by the names that PEFT saves them under."""
    from safetensors.torch import save

    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in weights.items()}
    with atomic_writer(folder / ADAPTER_WEIGHTS) as stream:
        stream.write(save(dict(sorted(state.items())), metadata={"format": "pt"}))
    values = config.to_dict()
    values["base_model_name_or_path"], values["revision"] = base, revision
    values["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set | list) else value for key, value in values.items()}
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")


def read_adapter_config(folder: Path) -> dict[str, object]:
    """The adapter's configuration.

    Raises:
        ModelError: the folder holds no LoRA adapter, or one whose settings or weights are broken.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{folder}: no adapter here ({ADAPTER_CONFIG} is missing); give a run folder or an adapter folder."
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
    if (folder / ADAPTER_WEIGHTS).exists():
        _check_readable(folder / ADAPTER_WEIGHTS)
    return config


def _check_readable(file: Path) -> None:
    """Open weights without reading them, before a model loads for them."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); save the adapter again.") from error


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """The base with a saved adapter on it.

    Raises:
        ModelError: no adapter in the folder, or one for a model of other shapes.
    """
    from peft import get_peft_model_state_dict

    read_adapter_config(folder)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, autocast_adapter_dtype=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS_PICKLED}: names what weights do not need, so nothing of it was run."
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise _mismatch(str(folder), _last_line(error)) from error
    there = {name for name in _names(folder) if "lora_" in name}
    wanted = {name for name in get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora_" in name}
    if odd := sorted(there ^ wanted):  # PEFT warns of these, and answers as if half an adapter were one
        raise _mismatch(str(folder), f"{odd[0]} is {'missing' if odd[0] in wanted else 'too many'}")
    return adapted


def _names(folder: Path) -> Iterable[str]:
    """Of an adapter's weights, which stay on the disk where their file allows it."""
    if not (folder / ADAPTER_WEIGHTS).exists():
        return read_adapter_weights(folder)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as weights:
        return weights.keys()


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """An adapter's weights by PEFT's names; a pickled file is read without running anything of it.

    Raises:
        ModelError: there are none, or their file is broken.
    """
    from safetensors.torch import load_file

    file = folder / ADAPTER_WEIGHTS_PICKLED
    if file.exists() and not (folder / ADAPTER_WEIGHTS).exists():
        return state_dict_in(read_pth(file), file)
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / ADAPTER_WEIGHTS}: cannot be read ({error}); save the adapter again.") from error


def attach_adapter_weights(
    model: PreTrainedModel, state: Mapping[str, Tensor], values: Mapping[str, Any], source: str
) -> PeftModel:
    """The base with an adapter on it that is in memory, to answer with, on the layers that its weights name.

    Args:
        values: of its adapter_config.json; of them rank and scale are taken.

    Raises:
        ModelError: it is for a model of other layers or shapes, or more than LoRA's two matrices.
    """
    from peft import set_peft_model_state_dict

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
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        found = set_peft_model_state_dict(adapted, dict(state))
    except (RuntimeError, ValueError, KeyError) as error:
        raise _mismatch(source, _last_line(error)) from error
    if odd := sorted([*found.unexpected_keys, *(name for name in found.missing_keys if ".lora_" in name)]):
        raise _mismatch(source, odd[0])
    assert isinstance(adapted, PeftModel)
    return adapted.eval()


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Put saved weights into an adapter that is already attached."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))


def _mismatch(source: str, reason: str) -> ModelError:
    return ModelError(f"{source}: this adapter does not fit the model ({reason}); use the base it was trained on.")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
