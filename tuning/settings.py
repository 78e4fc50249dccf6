"""The blocks that task files are made of, and how a file becomes one.

Every block is frozen and refuses keys it does not know. A field's docstring is its help text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError

from tuning.errors import ConfigError


class SettingsGroup(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Quant(SettingsGroup):
    """How the frozen base model is held."""

    bits: Literal[4, 8, 16] = 4
    """4 is nf4 with double quantization, 8 is LLM.int8, 16 leaves the weights in the compute type."""
    compute: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What products are computed in; auto is bf16 where GPU or CPU have units for it, else fp16 (GPU) or fp32 (CPU)."""


class Lora(SettingsGroup):
    """The adapter: low-rank updates on every linear layer but the head (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is dropped in training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers to adapt, or all of them."""


class Optim(SettingsGroup):
    """The optimizer and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """The peak, reached when the warm-up ends."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; give this or `steps`."""
    micro_batch: int = Field(default=1, ge=1)
    """Rows (packs, when packing) that one device computes at once."""
    accumulate: int = Field(default=16, ge=1)
    """Micro-batches whose gradients make one step, on each device."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; never less than one step unless it is 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""


class Data(SettingsGroup):
    """What is trained on."""

    files: tuple[Path, ...] = Field(min_length=1)
    """Dataset files: messages, XTuner, alpaca, ShareGPT, oasst or LLaVA rows as JSONL, a JSON array or Parquet."""
    repeat: int = Field(default=1, ge=1)
    """How many times the rows are seen in one epoch; costs no memory."""
    max_length: int = Field(default=2048, ge=8)
    """Longest row or pack, in tokens; longer rows are cut after the last whole answer that fits."""
    pack: bool = True
    """Lay several rows into one sequence; otherwise rows are padded."""
    packing: Literal["isolated", "xtuner"] = "isolated"
    """isolated: whole rows, each attending to itself alone. xtuner: rows cut wherever a sequence is full, seeing what
    stands before them, tails lost, packed once for all epochs, so that XTuner's iterations come out; text only."""
    pack_workers: int = Field(default=32, ge=1)
    """Equal shares of the rows that packing xtuner packs apart, losing a tail each: XTuner's map_num_proc."""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of the distinct questions kept out of training, for a validation loss."""


class Rehearsal(SettingsGroup):
    """Unrelated rows mixed in so that the model forgets little: prompts that the base itself answers before training,
    and dataset files as they stand."""

    prompts: tuple[Path, ...] = ()
    """Files of prompts (YAML lists), answered by the base model."""
    max_prompts: int | None = Field(default=None, ge=1)
    """How many of the prompts are answered at most, drawn by the seed; as many as the run can use when left out."""
    files: tuple[Path, ...] = ()
    """Dataset files whose rows are mixed in as they are, such as dialogues about other pictures."""
    ratio: float = Field(default=1.0, ge=0)
    """Rehearsal rows for each row of the data."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer of the base; one that does not end by itself within it is left out."""


class Evaluation(SettingsGroup):
    """Questions asked before, during and after training."""

    probes: tuple[Path, ...] = ()
    """Probe files (YAML) that `compare` asks."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 asks only before and after."""
    samples: int = Field(default=2, ge=0)
    """Probes of each group that are asked at an evaluation."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer to a probe."""


class Run(SettingsGroup):
    """Everything about the run that does not change what is learned."""

    seed: int = 0
    """Of data order, adapter initialization and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints to go on from; 0 keeps only what the run ends in."""
    keep: int = Field(default=2, ge=1)
    """How many of the latest checkpoints stay."""
    trackers: tuple[str, ...] = ()
    """Names of accelerate's trackers to write to, such as tensorboard."""


class Task(SettingsGroup):
    """What the tasks of both paths have."""

    model: str
    """The language model: a folder in Hugging Face layout, a hub name (owner/model), modelscope:owner/model, or
    `embedded`: one out of a Python package."""
    revision: str | None = None
    """Branch, tag or commit of a fetched model; a run keeps the commit that it was then."""
    system: str | None = None
    """System text given wherever a conversation has none of its own, the same in training, compare and chat."""
    template: str | None = None
    """Name of a chat template of XTuner's list, such as internlm2_chat; the model's own when left out."""
    quant: Quant = Quant()
    lora: Lora | None = Lora()
    """null trains every weight of the language model in place of an adapter: 16 bytes of memory for each."""
    data: Data
    rehearsal: Rehearsal = Rehearsal()
    optim: Optim = Field(default_factory=Optim)
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @model_validator(mode="after")
    def _one_duration(self) -> "Task":
        if (self.optim.steps is None) == (self.optim.epochs is None):
            raise ValueError("give optim.steps or optim.epochs, one of the two")
        return self

    @model_validator(mode="after")
    def _weights_trainable(self) -> "Task":
        if self.full_finetuning and self.quant.bits != 16:
            raise ValueError(
                f"lora: null trains the weights, and {self.quant.bits}-bit ones cannot be: set quant.bits: 16"
            )
        return self

    @property
    def full_finetuning(self) -> bool:
        """Whether every weight of the language model is trained."""
        return self.lora is None

    @property
    def versioned_model(self) -> str:
        """The language model with its revision, as everything that loads it takes it."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


def settings_group_of(field: FieldInfo) -> type[SettingsGroup] | None:
    """The group of settings that a field is, also one that null takes out; None where it is a value."""
    default = field.get_default(call_default_factory=True)
    kind = type(default) if isinstance(default, SettingsGroup) else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


# XTuner's and other kits' names, and where the same thing stands here.
NAMES_IN_OTHER_KITS = {
    "batch_size": "optim.micro_batch",
    "per_device_train_batch_size": "optim.micro_batch",
    "accumulative_counts": "optim.accumulate",
    "gradient_accumulation_steps": "optim.accumulate",
    "lr": "optim.learning_rate",
    "max_epochs": "optim.epochs",
    "num_train_epochs": "optim.epochs",
    "max_iters": "optim.steps",
    "max_steps": "optim.steps",
    "warmup_ratio": "optim.warmup",
    "max_norm": "optim.clip",
    "pretrained_model_name_or_path": "model",
    "model_name_or_path": "model",
    "max_length": "data.max_length",
    "pack_to_max_length": "data.pack",
    "map_num_proc": "data.pack_workers",
    "data_path": "data.files",
    "alpaca_en_path": "data.files",
    "save_steps": "run.save_every",
    "save_total_limit": "run.keep",
    "evaluation_freq": "evaluation.every",
    "evaluation_inputs": "evaluation.probes",
    "SYSTEM": "system",
    "prompt_template": "template",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "load_in_4bit": "quant.bits",
    "load_in_8bit": "quant.bits",
}

Settings = TypeVar("Settings", bound=SettingsGroup)


def read_yaml(path: Path) -> CommentedMap:
    """A YAML mapping with its line numbers and comments.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        document = YAML().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a task file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: not valid YAML ({error.problem}); mend that line.") from error
    if not isinstance(document, CommentedMap):
        raise ConfigError(
            f"{path}: a task file is a mapping of keys to values; `twinlens copy-cfg` gives one to start from."
        )
    return document


def apply_overrides(document: CommentedMap, overrides: Sequence[str]) -> list[str]:
    """Set `a.b=value` in place, values read as YAML; return a line for each change, old and new.

    Raises:
        ConfigError: an override has no `=`, or goes below something that is not a mapping.
    """
    changes: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{override}: an override is written key=value, such as optim.learning_rate=1e-4.")
        try:
            value = YAML(typ="safe").load(text) if text else None
        except MarkedYAMLError as error:
            raise ConfigError(f"{override}: the value is not valid YAML ({error.problem}).") from error
        *parents, last = key.split(".")
        place: Any = document
        for parent in parents:
            place = place.setdefault(parent, CommentedMap())
            if not isinstance(place, dict):
                raise ConfigError(f"{override}: {parent} is not a group of settings, so nothing stands below it.")
        changes.append(f"{key}: {place.get(last, '(default)')} -> {value}")
        place[last] = value
    return changes


def validate_settings(document: Mapping[str, Any], task: type[Settings], where: str) -> Settings:
    """Build a task from plain values, naming every fault at once.

    Raises:
        ConfigError: one line for each fault, with file, line, key and what to do.
    """
    try:
        return task.model_validate(document)
    except ValidationError as error:
        faults = [
            _fault(document, where, fault["loc"], fault["type"], fault["msg"], fault["input"])
            for fault in error.errors()
        ]
        raise ConfigError("\n".join(faults)) from error


def read_settings(path: Path, task: type[Settings], overrides: Sequence[str] = ()) -> tuple[Settings, list[str]]:
    """Read a task file and apply overrides; also return what each override changed.

    Raises:
        ConfigError: as `read_yaml`, `apply_overrides` and `validate_settings` do.
    """
    document = read_yaml(path)
    changes = apply_overrides(document, overrides)
    return validate_settings(document, task, str(path)), changes


def _fault(
    document: Mapping[str, Any], where: str, loc: tuple[int | str, ...], kind: str, message: str, value: Any
) -> str:
    key = ".".join(str(part) for part in loc if part not in ("all-linear", "tuple[str, ...]", "literal['all-linear']"))
    place = f"{where}{_line(document, loc)}: {key}" if key else where
    if kind == "extra_forbidden":
        hint = NAMES_IN_OTHER_KITS.get(str(loc[-1]))
        return f"{place}: no such key; " + (
            f"here it is {hint}." if hint else "`twinlens show-cfg` lists the keys there are."
        )
    if kind == "missing":
        return f"{place}: is missing; add it."
    if kind == "tuple_type":
        return f"{place}: must be a list; write it in brackets, such as [{value}]."
    if kind == "too_short":
        return f"{place}: is an empty list; name at least one."
    got = "" if isinstance(value, Mapping) else f" (got {value!r})"  # a whole block would bury the sentence
    return f"{place}: {message.removeprefix('Value error, ')}{got}."


def _line(document: Any, loc: tuple[int | str, ...]) -> str:
    line: int | None = None
    for part in loc:
        marks = getattr(getattr(document, "lc", None), "data", None)
        if not marks or part not in marks:
            break
        line = marks[part][0] + 1
        document = document[part]
    return "" if line is None else f", line {line}"
