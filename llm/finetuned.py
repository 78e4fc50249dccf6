"""Fine-tuning methods of a language model (adapter, full, frozen): make it trainable; save, check and load results."""

import logging
from dataclasses import dataclass
from typing import Protocol

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
HIGH_LEARNING_RATE = 1e-4  # higher rates suit adapters; full fine-tuning takes a tenth of them, or the model forgets
Network = PreTrainedModel | PeftModel


class Finetuning(Protocol):
    """How a language model is fine-tuned, and what a finished run holds."""

    def check_base(self) -> None:
        """Refuse a base model that cannot be trained this way, before its weights load.

        Raises:
            ModelError: the base model is stored quantized, and all of its weights are to be trained.
        """
        ...

    def make_trainable(self, model: PreTrainedModel) -> TrainedWeights[Network]:
        """Attach a new adapter, or make every weight trainable."""
        ...

    def save_finetuned(self, weights: TrainedWeights[Network], loaded: LoadedModel, run: RunDir) -> None:
        """Write the result of a finished run."""
        ...

    def check_finetuned(self, run: RunDir) -> None:
        """Check the result of a run before anything loads.

        Raises:
            ModelError: the run has not finished, or its result is broken.
        """
        ...

    def model_to_load(self, run: RunDir) -> str:
        """The language model to load for a finished run: the base of its adapter, or the run's own model."""
        ...

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> Network:
        """The fine-tuned model of a run, from its base model or from `model_to_load`."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterFinetuning:
    """LoRA: the result is an adapter in `RUN/adapter`."""

    model: str
    revision: str | None
    lora: Lora
    seed: int

    def check_base(self) -> None:
        """An adapter can be trained on every base model."""

    def make_trainable(self, model: PreTrainedModel) -> AdapterWeights:
        """Attach a new adapter."""
        return AdapterWeights(attach_adapter(model, self.lora, self.seed), self.model, self.revision)

    def save_finetuned(self, weights: TrainedWeights[Network], loaded: LoadedModel, run: RunDir) -> None:
        """Write the adapter."""
        weights.save(run.adapter)

    def check_finetuned(self, run: RunDir) -> None:
        """Read the adapter's configuration."""
        read_adapter_config(run.adapter)

    def model_to_load(self, run: RunDir) -> str:
        """The base model with its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> PeftModel:
        """The base model with the run's adapter on it."""
        return load_adapter(loaded.model, run.adapter)


@dataclass(frozen=True, slots=True)
class FullFinetuning:
    """Full fine-tuning: the result is a model in `RUN/model`, in the 16-bit type of the base model's files."""

    model: str
    quant: Quant
    device: str

    def check_base(self) -> None:
        """Refuse a base model that is stored quantized."""
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
        """Look for the model's weight files."""
        if not run.model.is_dir():
            raise ModelError(f"{run.path}: nothing trained in it yet (model/ is missing); train it to its end.")
        weight_files(run.model)

    def model_to_load(self, run: RunDir) -> str:
        """The run's own model."""
        return str(run.model)

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> PreTrainedModel:
        """The run's own model; the memory of a base model is freed first."""
        if loaded.name == str(run.model):
            return loaded.model
        loaded.release()
        return load_model(str(run.model), loaded.template, self.quant, self.device).model


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """No fine-tuning of the language model: other parts are trained beside it."""

    model: str

    def check_base(self) -> None:
        """Every base model can stay frozen."""

    def make_trainable(self, model: PreTrainedModel) -> TrainedWeights[Network]:
        """Leave the model as it is."""
        return FrozenWeights(model)

    def save_finetuned(self, weights: TrainedWeights[Network], loaded: LoadedModel, run: RunDir) -> None:
        """Write nothing."""

    def check_finetuned(self, run: RunDir) -> None:
        """Nothing to check."""

    def model_to_load(self, run: RunDir) -> str:
        """The base model."""
        return self.model

    def load_finetuned(self, loaded: LoadedModel, run: RunDir) -> PreTrainedModel:
        """The base model."""
        return loaded.model


def finetuning_of(task: Task, *, frozen: bool = False) -> Finetuning:
    """The fine-tuning method of a task's language model; `frozen` if only other parts are trained."""
    if task.full_finetuning:
        return FullFinetuning(task.versioned_model, task.quant, task.run.device)
    if frozen or task.lora is None:
        return FrozenModel(task.versioned_model)
    return AdapterFinetuning(task.model, task.revision, task.lora, task.run.seed)


def log_trainable(module: nn.Module, task: Task, what: str) -> None:
    """Log the number of trainable parameters; warn if the learning rate is too high for full fine-tuning."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    types = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained}))
    log.info("%s: %s trainable parameters in %s", what, f"{sum(each.numel() for each in trained):,}", types)
    if task.full_finetuning and task.optim.learning_rate > HIGH_LEARNING_RATE:
        log.warning("optim.learning_rate %g is high for full fine-tuning; 1e-5 is usual", task.optim.learning_rate)
