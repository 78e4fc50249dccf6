"""Fine-tuning methods (adapter, full): make a model trainable; save and load its trained weights."""

import logging
from dataclasses import dataclass

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from llm.checkpoints.shards import weight_files
from llm.export.saving import checkpoint_dtype, save_model
from llm.loading import LoadedModel, load_model, model_folder
from tuning.atomic import atomic_folder
from tuning.errors import ModelError
from tuning.modules.lora import attach_adapter, load_adapter, read_adapter_config
from tuning.modules.trained_weights import AdapterWeights, FrozenWeights, TrainedWeights, enable_full_finetuning
from tuning.run_dir import RunDir
from tuning.settings import Lora, Quant, Task

log = logging.getLogger("twinlens")
HIGH_LEARNING_RATE = 1e-4  # usual for adapters; in full fine-tuning the model forgets, so its usual rate is 1e-5
Network = PreTrainedModel | PeftModel


@dataclass(frozen=True, slots=True)
class AdapterFinetuning:
    """LoRA on a frozen model. The result is an adapter in `RUN/adapter`; if `lora` is None, there is no adapter."""

    model: str
    revision: str | None
    lora: Lora | None
    seed: int

    def check_base(self) -> None:
        """Every base model is accepted."""

    def make_trainable(self, model: PreTrainedModel) -> TrainedWeights[Network]:
        """Attach a new adapter."""
        if self.lora is None:
            return FrozenWeights(model)
        return AdapterWeights(attach_adapter(model, self.lora, self.seed), self.model, self.revision)

    def save_finetuned(self, weights: TrainedWeights[Network], loaded: LoadedModel, run: RunDir) -> None:
        """Write the adapter."""
        weights.save(run.adapter)

    def check_finetuned(self, run: RunDir) -> None:
        """Check the adapter of a finished run before anything loads.

        Raises:
            ModelError: the run has not finished, or the adapter is broken.
        """
        if self.lora is not None:
            read_adapter_config(run.adapter)

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> Network:
        """The base model with the run's adapter."""
        return loaded.model if self.lora is None else load_adapter(loaded.model, run.adapter)


@dataclass(frozen=True, slots=True)
class FullFinetuning:
    """Full fine-tuning. The result is a model in `RUN/model`, in the 16-bit dtype of the base model's files."""

    model: str
    quant: Quant
    device: str

    def check_base(self) -> None:
        """Refuse a quantized base model before its weights load.

        Raises:
            ModelError: the base model is stored quantized.
        """
        checkpoint_dtype(model_folder(self.model, weights=False))

    def make_trainable(self, model: PreTrainedModel) -> TrainedWeights[Network]:
        """Make every weight trainable."""
        return enable_full_finetuning(model)

    def save_finetuned(self, weights: TrainedWeights[Network], loaded: LoadedModel, run: RunDir) -> None:
        """Write the model with its tokenizer."""
        assert isinstance(weights.network, PreTrainedModel)
        with atomic_folder(run.model, replace=True) as unfinished:
            save_model(weights.network, loaded.template, unfinished, checkpoint_dtype(loaded.folder))

    def check_finetuned(self, run: RunDir) -> None:
        """Check the weight files of a finished run before anything loads.

        Raises:
            ModelError: the run has not finished, or a weight file is missing.
        """
        if not run.model.is_dir():
            raise ModelError(f"{run.path}: not trained yet (model/ is missing); finish the training.")
        weight_files(run.model)

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> Network:
        """The run's own model. If `loaded` is another model, its memory is freed first."""
        if loaded.name == str(run.model):
            return loaded.model
        loaded.release()
        return load_model(str(run.model), loaded.template, self.quant, self.device).model


Finetuning = AdapterFinetuning | FullFinetuning


def finetuning_of(task: Task, *, frozen: bool = False) -> Finetuning:
    """The fine-tuning method of a task's language model.

    Args:
        frozen: whether only other parts are trained, so that the language model gets no adapter.
    """
    if task.full_finetuning:
        return FullFinetuning(task.versioned_model, task.quant, task.run.device)
    return AdapterFinetuning(task.model, task.revision, None if frozen else task.lora, task.run.seed)


def log_trainable(module: nn.Module, task: Task, what: str) -> None:
    """Log the number of trainable parameters. Warn if the learning rate is too high for full fine-tuning."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    types = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained}))
    log.info("%s: %s trainable parameters in %s", what, f"{sum(each.numel() for each in trained):,}", types)
    if task.full_finetuning and task.optim.learning_rate > HIGH_LEARNING_RATE:
        log.warning("optim.learning_rate %g is high for full fine-tuning; 1e-5 is usual", task.optim.learning_rate)
