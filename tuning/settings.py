"""Task settings: sections such as `optim` and `run`, checks of their values, command-line overrides.

Each group is frozen and rejects unknown keys. The docstring of a field is its help text.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError

from tuning.errors import ConfigError
from tuning.yaml_files import YamlFile, read_yaml


class SettingsGroup(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Quant(SettingsGroup):
    """Quantization of the frozen base model."""

    bits: Literal[4, 8, 16] = 4
    """4 is NF4 with double quantization, 8 is LLM.int8, 16 keeps the weights in the compute dtype."""
    compute: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute dtype; auto is bf16 where the GPU or CPU supports it, else fp16 (GPU) or fp32 (CPU)."""


class Lora(SettingsGroup):
    """The LoRA adapter, on every linear layer except the head (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate on the input of the adapter."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter; all-linear means all of them."""


class Optim(SettingsGroup):
    """The optimizer and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, reached at the end of the warmup."""
    steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps; set this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Number of passes over the data; set this or `steps`."""
    micro_batch: int = Field(default=1, ge=1)
    """Rows (packs when packing is on) in one forward pass of one device."""
    accumulate: int = Field(default=16, ge=1)
    """Gradient accumulation: micro-batches per optimizer step, on each device."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Fraction of the steps used for learning-rate warmup; at least one step unless it is 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warmup."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Beta coefficients of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Maximum gradient norm (clipping)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class Data(SettingsGroup):
    """Training data."""

    files: tuple[Path, ...] = Field(min_length=1)
    """Dataset files: messages, XTuner, alpaca, ShareGPT, oasst or LLaVA rows as JSONL, a JSON array or Parquet."""
    repeat: int = Field(default=1, ge=1)
    """Number of times that each row is used in one epoch; costs no memory."""
    max_length: int = Field(default=2048, ge=8)
    """Maximum length of a row or pack, in tokens; longer rows are cut after the last complete answer that fits."""
    pack: bool = True
    """Pack several rows into one sequence; false pads the rows."""
    packing: Literal["isolated", "xtuner"] = "isolated"
    """isolated: complete rows, each attends only to itself. xtuner: as XTuner packs (text only): rows are cut where a
    sequence is full and attend to the rows before them, the remainder is dropped, packed once for all epochs."""
    pack_workers: int = Field(default=32, ge=1)
    """Number of equal parts of the data that packing xtuner packs separately, as XTuner's map_num_proc; each part
    drops its remainder."""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the distinct questions held out from training, for a validation loss."""


class Rehearsal(SettingsGroup):
    """Unrelated rows mixed into the training data against forgetting: prompts answered by the base model before
    training, and rows of dataset files, unchanged."""

    prompts: tuple[Path, ...] = ()
    """Files of prompts (YAML lists) that the base model answers."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Maximum number of prompts to answer, sampled by the seed; when left out, as many as the run can use."""
    files: tuple[Path, ...] = ()
    """Dataset files whose rows are mixed in unchanged, such as dialogues about other pictures."""
    ratio: float = Field(default=1.0, ge=0)
    """Number of rehearsal rows per row of the data."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum tokens of an answer of the base model; an answer that does not end within it is dropped."""


class Evaluation(SettingsGroup):
    """Probes: questions asked before, during and after training."""

    probes: tuple[Path, ...] = ()
    """Probe files (YAML) that `compare` asks."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates only before and after training."""
    samples: int = Field(default=2, ge=0)
    """Number of probes of each group asked at an evaluation during training."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum tokens of an answer to a probe."""


class Run(SettingsGroup):
    """Seed, device, checkpoints and trackers."""

    seed: int = 0
    """Random seed of data order, adapter initialization and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints for resume; 0 saves only the final result."""
    keep: int = Field(default=2, ge=1)
    """Number of latest checkpoints to keep."""
    trackers: tuple[str, ...] = ()
    """Names of accelerate's trackers, such as tensorboard."""


class Task(SettingsGroup):
    """Settings that text and image tasks share."""

    model: str
    """The language model: a folder in Hugging Face layout, a hub name (owner/model), modelscope:owner/model, or
    `embedded`, a model from a Python package."""
    revision: str | None = None
    """Branch, tag or commit of a downloaded model; a run records the commit."""
    system: str | None = None
    """System prompt for conversations without one; the same in training, compare and chat."""
    template: str | None = None
    """Name of one of XTuner's chat templates, such as internlm2_chat; the model's own when left out."""
    quant: Quant = Quant()
    lora: Lora | None = Lora()
    """null selects full fine-tuning of the language model instead of an adapter: 16 bytes of memory per weight."""
    data: Data
    rehearsal: Rehearsal = Rehearsal()
    optim: Optim = Field(default_factory=Optim)
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @model_validator(mode="after")
    def _check_duration_and_weights(self) -> "Task":
        if (self.optim.steps is None) == (self.optim.epochs is None):
            raise ValueError("set either optim.steps or optim.epochs, not both")
        if self.full_finetuning and self.quant.bits != 16:
            raise ValueError(
                f"lora: null (full fine-tuning) cannot train {self.quant.bits}-bit weights: set quant.bits: 16"
            )
        return self

    @property
    def full_finetuning(self) -> bool:
        """Whether all weights of the language model are trained, without an adapter."""
        return self.lora is None

    @property
    def versioned_model(self) -> str:
        """`model@revision`, or the model alone; the format that the loading functions accept."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


def settings_group_of(field: FieldInfo) -> type[SettingsGroup] | None:
    """The settings group of a field, also where the field can be null; None if the field is a plain value."""
    default = field.get_default(call_default_factory=True)
    kind = type(default) if isinstance(default, SettingsGroup) else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


# Each setting, and its names in XTuner, TRL, LLaMA-Factory, Unsloth and axolotl.
_OTHER_NAMES = {
    "model": "pretrained_model_name_or_path model_name_or_path base_model",
    "system": "SYSTEM",
    "template": "prompt_template",
    "quant.bits": "load_in_4bit load_in_8bit quantization_bit",
    "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "lora_target lora_target_modules target_modules",
    "data.files": "data_path alpaca_en_path",
    "data.max_length": "max_length max_seq_length cutoff_len sequence_len",
    "data.pack": "packing sample_packing pack_to_max_length",
    "data.pack_workers": "map_num_proc",
    "data.validation": "val_size val_set_size",
    "optim.learning_rate": "lr learning_rate",
    "optim.steps": "max_iters max_steps",
    "optim.epochs": "num_epochs max_epochs num_train_epochs",
    "optim.micro_batch": "batch_size per_device_train_batch_size micro_batch_size",
    "optim.accumulate": "accumulative_counts gradient_accumulation gradient_accumulation_steps",
    "optim.warmup": "warmup_ratio",
    "optim.schedule": "lr_scheduler lr_scheduler_type",
    "optim.weight_decay": "weight_decay",
    "optim.clip": "max_grad_norm max_norm",
    "optim.gradient_checkpointing": "gradient_checkpointing",
    "evaluation.probes": "evaluation_inputs",
    "evaluation.every": "evaluation_freq",
    "run.seed": "seed",
    "run.save_every": "save_steps",
    "run.keep": "save_total_limit",
    "run.trackers": "report_to",
}
NAMES_IN_OTHER_KITS = {name: key for key, names in _OTHER_NAMES.items() for name in names.split()}

Settings = TypeVar("Settings", bound=SettingsGroup)


def read_task_document(path: Path) -> CommentedMap:
    """Read a task file as a YAML mapping with line numbers and comments.

    Raises:
        ConfigError: the file is missing, or is not a YAML mapping.
    """
    document = read_yaml(path, "task file", ConfigError).values
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{path}: a task file must be a mapping of keys to values; `twinlens copy-cfg` writes one.")
    return document


def apply_overrides(document: CommentedMap, overrides: Sequence[str]) -> list[str]:
    """Set each `a.b=value` in `document`, with `value` read as YAML.

    Returns:
        One line for each change, with the old and the new value.

    Raises:
        ConfigError: an override has no `=`, its value is not YAML, or a parent of its key is not a mapping.
    """
    changes: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{override}: an override has the form key=value, such as optim.learning_rate=1e-4.")
        try:
            value = YAML(typ="safe").load(text) if text else None
        except MarkedYAMLError as error:
            raise ConfigError(f"{override}: the value is not valid YAML ({error.problem}).") from error
        *parents, last = key.split(".")
        group: Any = document
        for parent in parents:
            group = group.setdefault(parent, CommentedMap())
            if not isinstance(group, dict):
                raise ConfigError(f"{override}: {parent} is not a group of settings and has no keys.")
        changes.append(f"{key}: {group.get(last, '(default)')} -> {value}")
        group[last] = value
    return changes


def validate_settings(document: Mapping[str, Any], task: type[Settings], where: str) -> Settings:
    """Validate a mapping of settings and build the task.

    Args:
        where: the file, as error messages name it.

    Raises:
        ConfigError: all faults, one line each, with file, line, key and fix.
    """
    file = YamlFile(where, document)
    settings = file.validate(task, other_names=NAMES_IN_OTHER_KITS)
    file.raise_faults(ConfigError)
    assert settings is not None
    return settings
