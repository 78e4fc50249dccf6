"""A config's values by path; what was asked of it is remembered, so that the rest can be named."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tuning.errors import ConfigError
from twinlens.xtuner.configs.expressions import Reference, Unread
from twinlens.xtuner.configs.reader import Config

MOST = 20_000
HOOK = "custom_hooks.EvaluateChatHook"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a config stand.

    Args:
        read: what is read of its names; every other is a variable that stands in one of these.
        language: the language model.
        lora: its adapter.
        dataset: what is trained on.
    """

    read: tuple[str, ...]
    language: str
    lora: str
    dataset: str


MMENGINE = Layout(
    read=(
        *("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks"),
        *("default_hooks", "randomness", "load_from", "resume", "visualizer", "work_dir", "data_preprocessor"),
        *("strategy", "auto_scale_lr", "val_dataloader", "val_evaluator", "val_cfg", "test_dataloader"),
        *("test_evaluator", "test_cfg", "env_cfg", "log_level", "log_processor", "sequence_parallel_size", "framework"),
    ),
    language="model.llm",
    lora="model.lora",
    dataset="train_dataloader.dataset",
)
# What hands over to transformers' Trainer.
TRAINER = Layout(
    read=("framework", "model", "lora", "train_dataset", "trainer", "training_args"),
    language="model",
    lora="lora",
    dataset="train_dataset",
)


class ConfigTree:
    """The values of a config by path, such as `model.llm.quantization_config.load_in_4bit`.

    Dicts in a list go by their type: `custom_hooks.EvaluateChatHook.every_n_iters`, a second one by `#2`.
    """

    def __init__(self, config: Config) -> None:
        self.file: Path = config.file
        framework = config.values.get("framework")
        trainer = isinstance(framework, str) and framework.lower() == "huggingface"
        self.layout = TRAINER if trainer else MMENGINE
        self.differs: list[str] = []
        self._leaves: dict[str, Any] = {}
        self._taken: set[str] = set()
        try:
            for name in self.layout.read:
                if name in config.values:
                    self._leaves.update(_leaves(name, config.values[name], count()))
        except RecursionError as error:
            raise self.fault("nested too deeply, or too long, to be a config; give the file to train with") from error

    def fault(self, sentence: str) -> ConfigError:
        """An error that names the file."""
        return ConfigError(f"{self.file}: {sentence}.")

    def differ(self, path: str, sentence: str) -> None:
        """Note what does not carry over as it stands."""
        self.differs.append(f"{path}: {sentence}")

    def has(self, path: str) -> bool:
        """Whether there is a value at a path or below it, other than None."""
        return self._leaves.get(path) is not None or any(leaf.startswith(f"{path}.") for leaf in self._leaves)

    def below(self, path: str) -> list[str]:
        """The names right below a path, in order.

        Raises:
            ConfigError: what stands there cannot be known without running the config.
        """
        self._refuse_unread(path)
        start = len(path) + 1
        found = (leaf[start:].partition(".")[0] for leaf in self._leaves if leaf.startswith(f"{path}."))
        return list(dict.fromkeys(found))

    def take(self, path: str, default: Any = None) -> Any:
        """The value at a path, or the default where there is none or None.

        Raises:
            ConfigError: it cannot be known without running the config, or there is a group of values.
        """
        self._taken.add(path)
        if self.below(path):
            raise self.fault(f"{path} is a group of values; write one value")
        value = self._leaves.get(path)
        return default if value is None else value

    def _refuse_unread(self, path: str) -> None:
        """Also where a value stands within something that is not known."""
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            value = self._leaves.get(".".join(parts[:length]))
            if isinstance(value, Unread):
                if value.missing:
                    raise ConfigError(f"{value.where}: {value.missing} has no value, and {path} needs it; give it one.")
                raise ConfigError(
                    f"{value.where}: {path} cannot be known without running `{value.source}`; write its value there."
                )

    def number(self, path: str, default: float) -> float:
        """The finite number at a path.

        Raises:
            ConfigError: something else stands there.
        """
        value = self.take(path, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fault(f"{path} is {shown(value)}, not a number; write one")
        return value

    def text(self, path: str) -> str | None:
        """The text at a path, or None.

        Raises:
            ConfigError: something else stands there.
        """
        value = self.take(path)
        if value is not None and not isinstance(value, str):
            raise self.fault(f"{path} is {shown(value)}, not a text; write one in quotes")
        return value

    def name(self, path: str) -> str | None:
        """The last name of what is imported or named as a text at a path, or what stands there in a few words."""
        self._taken.add(path)
        value = self._leaves.get(path)
        return value.rpartition(".")[2] if isinstance(value, str) else None if value is None else shown(value)

    def kind(self, path: str) -> str:
        """What a `type` is called: its last name, without `from_pretrained`."""
        value = self.take(f"{path}.type")
        name = value.name if isinstance(value, Reference) else str(value or "")
        return name.removesuffix(".from_pretrained").rpartition(".")[2]

    def left(self) -> Iterator[tuple[str, Any]]:
        """Values that nobody asked for, other than None."""
        return ((path, value) for path, value in self._leaves.items() if path not in self._taken and value is not None)


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Reference):
        return value.last
    if isinstance(value, Unread):
        return f"`{value.source}`, which is not run"
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _leaves(path: str, value: Any, seen: Iterator[int]) -> Iterator[tuple[str, Any]]:
    if next(seen) > MOST:
        raise RecursionError  # a few names can stand for endless values
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner, seen)
    elif isinstance(value, list | tuple) and any(isinstance(each, dict | list | tuple) for each in value):
        names: Counter[str] = Counter()
        for each in value:
            kind = each.get("type") if isinstance(each, dict) else None
            name = kind.last if isinstance(kind, Reference) else kind if isinstance(kind, str) else "item"
            names[name] += 1
            yield from _leaves(f"{path}.{name}" + (f"#{names[name]}" if names[name] > 1 else ""), each, seen)
    else:
        yield path, value
