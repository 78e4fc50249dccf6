"""Config values by dotted key; values that are never read can be listed."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from tuning.errors import ConfigError
from twinlens.xtuner.configs.expressions import Reference, Unevaluated
from twinlens.xtuner.configs.reader import XTunerConfig

MAX_VALUES = 20_000
CHAT_HOOK = "custom_hooks.EvaluateChatHook"


@dataclass(frozen=True, slots=True)
class ConfigKind:
    """Paths of the parts of a kind of config.

    Args:
        names: the top-level names that can change training; other names are variables, tests and logs.
        language: path of the language model.
        lora: path of its adapter.
        dataset: path of the training dataset.
    """

    names: tuple[str, ...]
    language: str
    lora: str
    dataset: str


# For mmengine's Runner.
MMENGINE_CONFIG = ConfigKind(
    names=(
        *("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks"),
        *("default_hooks", "randomness", "load_from", "resume", "visualizer", "work_dir", "data_preprocessor"),
        *("strategy", "auto_scale_lr", "val_dataloader", "sequence_parallel_size", "framework"),
    ),
    language="model.llm",
    lora="model.lora",
    dataset="train_dataloader.dataset",
)
# For transformers' Trainer.
TRAINER_CONFIG = ConfigKind(
    names=("framework", "model", "lora", "train_dataset", "trainer", "training_args"),
    language="model",
    lora="lora",
    dataset="train_dataset",
)


class ConfigTree:
    """The values of a config by path, such as `model.llm.quantization_config.load_in_4bit`.

    A dict in a list has its type as key: `custom_hooks.EvaluateChatHook.every_n_iters`; a second dict of that type has
    the suffix `#2`.
    """

    def __init__(self, config: XTunerConfig) -> None:
        self.file: Path = config.file
        trainer = str(config.values.get("framework")).lower() == "huggingface"
        self.kind = TRAINER_CONFIG if trainer else MMENGINE_CONFIG
        self.differences: list[str] = []
        self._leaves: dict[str, Any] = {}
        self._used: set[str] = set()
        try:
            for name in self.kind.names:
                if name in config.values:
                    self._leaves.update(_leaves(name, config.values[name], count()))
        except RecursionError as error:
            raise self.error(
                "is too long or too deeply nested for a config; give the file that XTuner trains"
            ) from error

    def error(self, sentence: str) -> ConfigError:
        """An error that names the file."""
        return ConfigError(f"{self.file}: {sentence}.")

    def note(self, path: str, sentence: str) -> None:
        """Record a difference between the config and the task."""
        self.differences.append(f"{path}: {sentence}")

    def has(self, path: str) -> bool:
        """Whether there is a value at a path or below it, other than None."""
        return self._leaves.get(path) is not None or any(leaf.startswith(f"{path}.") for leaf in self._leaves)

    def keys(self, path: str) -> list[str]:
        """The keys directly below a path, in order.

        Raises:
            ConfigError: the value at the path or above it is unevaluated.
        """
        for prefix in accumulate(path.split("."), "{}.{}".format):
            if isinstance(value := self._leaves.get(prefix), Unevaluated):
                fault = f"{path} is not known without running `{value.source}`; write its value there"
                if value.missing:
                    fault = f"{value.missing} has no value, and {path} needs it; assign a value"
                raise ConfigError(f"{value.where}: {fault}.")
        start = len(path) + 1
        names = (leaf[start:].partition(".")[0] for leaf in self._leaves if leaf.startswith(f"{path}."))
        return list(dict.fromkeys(names))

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a path; the default if the value is missing or None.

        Raises:
            ConfigError: the value is unevaluated, or a dict.
        """
        self._used.add(path)
        if self.keys(path):
            raise self.error(f"{path} is a group of values; write one value")
        value = self._leaves.get(path)
        return default if value is None else value

    def number(self, path: str, default: float) -> float:
        """The finite number at a path.

        Raises:
            ConfigError: the value is not a number.
        """
        value = self.get(path, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{path} is {describe(value)}, not a number; write a number")
        return value

    def text(self, path: str) -> str | None:
        """The text at a path, or None.

        Raises:
            ConfigError: the value is not a text.
        """
        value = self.get(path)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{path} is {describe(value)}, not a text; write a text in quotes")
        return value

    def short_name(self, path: str) -> str | None:
        """The last part of an imported or quoted name at a path; any other value as `describe` shows it."""
        self._used.add(path)
        value = self._leaves.get(path)
        return value.rpartition(".")[2] if isinstance(value, str) else None if value is None else describe(value)

    def type_name(self, path: str) -> str:
        """The last part of the name of a `type`, without `from_pretrained`; empty if there is none."""
        value = self.get(f"{path}.type")
        return str(value or "").removesuffix(".from_pretrained").rpartition(".")[2]

    def unused(self) -> Iterator[tuple[str, Any]]:
        """Values that were never read, other than None."""
        return ((path, value) for path, value in self._leaves.items() if path not in self._used and value is not None)


def describe(value: Any) -> str:
    """A short description of a value, for messages."""
    if isinstance(value, Reference):
        return value.last
    if isinstance(value, Unevaluated):
        return f"`{value.source}`, which is not run"
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _leaves(path: str, value: Any, counter: Iterator[int]) -> Iterator[tuple[str, Any]]:
    if next(counter) > MAX_VALUES:
        raise RecursionError  # a few names can expand to exponentially many values
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner, counter)
    elif isinstance(value, list | tuple) and any(isinstance(each, dict | list | tuple) for each in value):
        names: Counter[str] = Counter()
        for each in value:
            kind = each.get("type") if isinstance(each, dict) else None
            name = kind.last if isinstance(kind, Reference) else kind if isinstance(kind, str) else "item"
            names[name] += 1
            yield from _leaves(f"{path}.{name}" + (f"#{names[name]}" if names[name] > 1 else ""), each, counter)
    else:
        yield path, value
