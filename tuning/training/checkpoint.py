"""Checkpoints: save and resume weights, optimizer and random state."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tuning.atomic import hidden_name
from tuning.errors import ConfigError
from tuning.modules.pth import write_pth
from tuning.run_dir import RunDir

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class TrainableModule:
    """What is trained and how it is kept.

    Args:
        module: `module(batch) -> (loss summed over labels, labels)`.
        save: writes the trained weights into a folder; `load` reads them back. DeepSpeed replaces both.
        save_final: writes the result when the run has ended.
        learning_rates: peak learning rates by prefix of the parameter names, where they differ from the run's.
    """

    module: nn.Module
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    save_final: Callable[[], None]
    learning_rates: dict[str, float] = field(default_factory=dict)


@contextmanager
def gathered_parameters(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """The trained weights whole in every process, where ZeRO-3 has divided them among all."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter for parameter in module.parameters() if parameter.requires_grad]):
        yield


class Checkpoint:
    """Everything a run needs to go on as if it had not stopped."""

    def __init__(
        self,
        accelerator: Accelerator,
        trainee: TrainableModule,
        model: nn.Module,
        optimizer: Any,
        run_dir: RunDir,
        keep: int,
    ) -> None:
        self._accelerator, self._trainee, self._model, self._optimizer = accelerator, trainee, model, optimizer
        self._run_dir, self._keep = run_dir, keep
        self._sharded = accelerator.distributed_type == "DEEPSPEED"

    def save(self, step: int) -> None:
        """Weights, optimizer and random state after `step`, under the final name only when all of it is on disk."""
        accelerator = self._accelerator
        with self._run_dir.new_checkpoint(step, self._keep) if accelerator.is_main_process else _nothing() as made:
            folder = made or hidden_name(self._run_dir.checkpoint(step))
            accelerator.wait_for_everyone()
            write_pth(self._random_state(), folder / f"random-{accelerator.process_index}.pt")
            if self._sharded:
                self._model.save_checkpoint(str(folder), tag="deepspeed", exclude_frozen_parameters=True)  # pyright: ignore[reportCallIssue]
            elif accelerator.is_main_process:
                self._trainee.save(folder)
                write_pth(self._optimizer.state_dict(), folder / "optimizer.pt")
            if accelerator.is_main_process:
                (folder / "progress.json").write_text(
                    json.dumps({"step": step, "processes": accelerator.num_processes})
                )
            accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()

    def load(self) -> int:
        """Go back to the last checkpoint; the steps it holds, or 0 when there is none.

        Raises:
            ConfigError: it was written by another number of processes.
        """
        if not (found := self._run_dir.checkpoints()):
            return 0
        step, folder = found[-1]
        progress = json.loads((folder / "progress.json").read_text())
        if progress["processes"] != self._accelerator.num_processes:
            raise ConfigError(
                f"{folder}: was written by {progress['processes']} processes and {self._accelerator.num_processes} "
                "run now; resume with as many."
            )
        if self._sharded:
            self._model.load_checkpoint(str(folder), tag="deepspeed", load_module_strict=False)  # pyright: ignore[reportCallIssue]
        else:
            self._trainee.load(folder)
            # Not to where it was saved from: all processes would then fill the first one's device.
            averages = torch.load(folder / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
            self._optimizer.load_state_dict(averages)
        state = torch.load(folder / f"random-{self._accelerator.process_index}.pt", weights_only=True)
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self._accelerator.device)
        log.info("going on from %s", folder)
        return step

    def _random_state(self) -> dict[str, torch.Tensor | None]:
        device = self._accelerator.device
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
