"""What `chat` and others may be pointed at: a run folder, an adapter, a merged model or a base model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llm.loading import load_model, load_template
from llm.settings import TextTask
from llm.template import ChatTemplate
from tuning.errors import ModelError
from tuning.lora import CONFIG, load_adapter, read_adapter_config
from tuning.run_dir import RunDir
from tuning.settings import Quant, read_settings


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers."""

    model: nn.Module
    template: ChatTemplate
    compute: torch.dtype


def open_target(target: str, system: str | None, bits: int, with_adapter: bool = True) -> Target:
    """Load what a user named; a run brings its own quantisation and system text.

    Raises:
        ModelError: it is nothing that can answer.
    """
    path = Path(target).expanduser()
    run = RunDir(path)
    if run.task.exists():
        read_adapter_config(run.adapter)
        task, _ = read_settings(run.task, TextTask)
        template = load_template(task.model, task.system if system is None else system)
        loaded = load_model(task.model, template, task.quant, task.run.device)
        model = load_adapter(loaded.model, run.adapter) if with_adapter else loaded.model
        return Target(model.eval(), template, loaded.compute)
    adapter = path if (path / CONFIG).exists() else None
    base = str(read_adapter_config(path)["base_model_name_or_path"]) if adapter else target
    if adapter and not base:
        raise ModelError(f"{path / CONFIG}: base_model_name_or_path is empty; write the base model's folder there.")
    template = load_template(base, system)
    loaded = load_model(base, template, Quant.model_validate({"bits": bits}))
    model = load_adapter(loaded.model, adapter) if adapter and with_adapter else loaded.model
    return Target(model.eval(), template, loaded.compute)
