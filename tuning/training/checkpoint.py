"""Checkpoints: save and resume weights, optimizer and random state."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
    """A module to train, and the functions that save and load its trained weights.

    Args:
        module: `module(batch) -> (loss summed over labels, labels)`.
        save: writes the trained weights into a folder; `load` reads them back. DeepSpeed replaces both.
        save_final: writes the result at the end of the run.
        learning_rates: peak learning rates by prefix of the parameter names, if they differ from the run's.
    """

    module: nn.Module
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    save_final: Callable[[], None]
    learning_rates: dict[str, float] = field(default_factory=dict)


def gathered_parameters(accelerator: Accelerator, module: nn.Module) -> AbstractContextManager[None]:
    """A context with the complete trained weights in every process, also under ZeRO-3, which divides them."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter for parameter in module.parameters() if parameter.requires_grad])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Saves and loads everything that a run needs to continue: a resumed run equals an uninterrupted one.

    Args:
        model: the module as accelerate prepared it.
        keep: number of latest checkpoints to keep.
    """

    accelerator: Accelerator
    trainable: TrainableModule
    model: nn.Module
    optimizer: Any
    run_dir: RunDir
    keep: int

    @property
    def _deepspeed(self) -> bool:
        return self.accelerator.distributed_type == "DEEPSPEED"

    def save(self, step: int) -> None:
        """Save weights, optimizer and random state after `step`. The folder gets its name when it is complete."""
        accelerator, device = self.accelerator, self.accelerator.device
        random_state = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        with self.run_dir.new_checkpoint(step, self.keep) if accelerator.is_main_process else nullcontext() as created:
            folder = created or hidden_name(self.run_dir.checkpoint(step))
            accelerator.wait_for_everyone()
            write_pth(random_state, folder / f"random-{accelerator.process_index}.pt")
            if self._deepspeed:
                self.model.save_checkpoint(str(folder), tag="deepspeed", exclude_frozen_parameters=True)  # pyright: ignore[reportCallIssue]
            elif accelerator.is_main_process:
                self.trainable.save(folder)
                write_pth(self.optimizer.state_dict(), folder / "optimizer.pt")
            if accelerator.is_main_process:
                (folder / "progress.json").write_text(
                    json.dumps({"step": step, "processes": accelerator.num_processes})
                )
            accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()

    def load(self) -> int:
        """Load the last checkpoint and return its step; 0 if there is none.

        Raises:
            ConfigError: it was written by another number of processes.
        """
        if not (found := self.run_dir.checkpoints()):
            return 0
        step, folder = found[-1]
        progress = json.loads((folder / "progress.json").read_text())
        if progress["processes"] != self.accelerator.num_processes:
            raise ConfigError(
                f"{folder}: was written by {progress['processes']} processes, but {self.accelerator.num_processes} run "
                "now; resume with the same number."
            )
        if self._deepspeed:
            self.model.load_checkpoint(str(folder), tag="deepspeed", load_module_strict=False)  # pyright: ignore[reportCallIssue]
        else:
            self.trainable.load(folder)
            # On the CPU: otherwise all processes load it onto the device of the first one.
            state_dict = torch.load(folder / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
            self.optimizer.load_state_dict(state_dict)
        random_state = torch.load(folder / f"random-{self.accelerator.process_index}.pt", weights_only=True)
        torch.set_rng_state(random_state["cpu"])
        if random_state["cuda"] is not None:
            torch.cuda.set_rng_state(random_state["cuda"], self.accelerator.device)
        log.info("resuming from %s", folder)
        return step
