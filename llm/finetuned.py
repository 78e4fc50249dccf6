"""What training makes of a language model, an adapter or all of its weights: begun, kept, and written at the end."""

import logging
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from llm.checkpoints.shards import weight_files
from llm.export.saving import checkpoint_dtype, save_model
from llm.loading import LoadedModel, load_model, model_folder
from tuning.atomic import atomic_folder
from tuning.errors import ModelError
from tuning.modules.full_finetuning import enable_full_finetuning, load_full_weights, save_full_weights
from tuning.modules.lora import attach_adapter, load_adapter, load_adapter_weights, read_adapter_config, save_adapter
from tuning.run_dir import RunDir
from tuning.settings import Task

log = logging.getLogger("twinlens")
HIGH_LEARNING_RATE = (
    1e-4  # learning rates above it suit adapters; whole models are tuned at a tenth of that, and forget otherwise
)
Network = PreTrainedModel | PeftModel


def check_base(task: Task) -> None:
    """Refuse, before its weights load, a base that cannot be trained as a whole.

    Raises:
        ModelError: it is stored quantized.
    """
    if task.full_finetuning:
        checkpoint_dtype(model_folder(task.versioned_model, weights=False))


def make_trainable(loaded: LoadedModel, task: Task) -> Network:
    """A fresh adapter on the model, or the model itself with every weight trained."""
    if task.lora is not None:
        return attach_adapter(loaded.model, task.lora, task.run.seed)
    enable_full_finetuning(loaded.model)
    return loaded.model


def log_trainable(module: nn.Module, task: Task, what: str) -> None:
    """Log how much of a model is trained, and warn of a rate that would undo what a whole one knows."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    types = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained}))
    log.info("%s: %s trainable parameters in %s", what, f"{sum(each.numel() for each in trained):,}", types)
    if task.full_finetuning and task.optim.learning_rate > HIGH_LEARNING_RATE:
        log.warning("optim.learning_rate %g is steep for a whole model; 1e-5 is usual", task.optim.learning_rate)


def save_checkpoint(network: Network, folder: Path, task: Task) -> None:
    """Into a checkpoint, all that is trained, in fp32."""
    if isinstance(network, PeftModel):
        save_adapter(network, folder, task.model, task.revision)
    else:
        save_full_weights(network, folder)


def load_checkpoint(network: Network, folder: Path) -> None:
    """Put back what `save_checkpoint` wrote."""
    if isinstance(network, PeftModel):
        load_adapter_weights(network, folder)
    else:
        load_full_weights(network, folder)


def save_finetuned(network: Network, loaded: LoadedModel, run: RunDir, task: Task) -> None:
    """What a run is for: its adapter, or the whole model in the 16 bits that its base is stored in, to load as one."""
    if isinstance(network, PeftModel):
        save_adapter(network, run.adapter, task.model, task.revision)
        return
    with atomic_folder(run.model, replace=True) as unfinished:
        save_model(network, loaded.template, unfinished, checkpoint_dtype(loaded.folder))


def check_finetuned(run: RunDir, task: Task) -> None:
    """Look at what a run learned before anything loads.

    Raises:
        ModelError: it has not finished, or what it wrote is broken.
    """
    if not task.full_finetuning:
        read_adapter_config(run.adapter)
        return
    if not run.model.is_dir():
        raise ModelError(f"{run.path}: nothing trained in it yet (model/ is missing); train it to its end.")
    weight_files(run.model)


def finetuned_model(run: RunDir, task: Task) -> str:
    """The language model that a run's adapter goes on, or that a run made in place of it."""
    return str(run.model) if task.full_finetuning else task.versioned_model


def load_finetuned(loaded: LoadedModel, run: RunDir, task: Task) -> Network:
    """A base as a run left it: with the run's adapter on it, or with the run's weights in place of its own."""
    if not task.full_finetuning:
        return load_adapter(loaded.model, run.adapter)
    loaded.release()
    return load_model(finetuned_model(run, task), loaded.template, task.quant, task.run.device).model
