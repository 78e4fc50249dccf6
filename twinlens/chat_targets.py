"""Chat targets: load a run, an adapter, a merged model or a base model so that it can answer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.embedded import EMBEDDED
from llm.finetuned import finetuning_of
from llm.generation import EmbedFunction
from llm.internlm.adapter import load_llama_or_internlm2_adapter
from llm.loading import load_model, load_template
from tuning.errors import ConfigError, ModelError
from tuning.modules.lora import ADAPTER_CONFIG, read_adapter_config
from tuning.paths import shipped_file
from tuning.run_dir import RunDir
from tuning.settings import Quant
from twinlens.task_files import read_task
from vlm.features import LiveFeatures, PictureTable
from vlm.finetuned import check_finetuned, finetuned_task, load_finetuned
from vlm.loading import build_vlm, make_embed_function, make_initial_parts
from vlm.recipe import load_vlm_template
from vlm.settings import ImageTask


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded model that can answer; `embed` is given if it also sees pictures."""

    model: nn.Module
    template: ChatTemplate
    compute_dtype: torch.dtype
    embed: EmbedFunction | None = None


def open_target(
    target: str,
    system: str | None,
    bits: int,
    with_adapter: bool = True,
    pictures: bool = False,
    template_name: str | None = None,
) -> Target:
    """Load a chat target.

    Args:
        target: a run folder, an adapter, a model folder, a hub name, or `embedded`.
        system: the system text; None uses that of the run.
        bits: of the weights; a run uses its own.
        with_adapter: False loads the model of a run as it was before training.
        pictures: whether questions will contain pictures.
        template_name: name of a chat template; None uses that of the run or model.

    Raises:
        ModelError: the target is not a model, or its training has not finished.
        ConfigError: pictures are given to a model without a tower.
    """
    path = Path(target).expanduser()
    run = RunDir(path)
    task = None
    if run.task.exists():
        task, _ = read_task(run.task)
        given = {"system": system, "template": template_name}
        task = task.model_copy(update={key: value for key, value in given.items() if value is not None})
        if isinstance(task, ImageTask):
            return open_vlm(task, run if with_adapter else None)
    elif pictures and target == EMBEDDED:
        return open_vlm(embedded_vlm_task(bits, system).model_copy(update={"template": template_name}), None)
    if pictures:
        raise ConfigError(f"--image: {target} has no vision tower; give the folder of an image run, or embedded.")
    if task is not None:
        finetuning = finetuning_of(task)
        finetuning.check_finetuned(run)
        name = str(run.model) if with_adapter and task.full_finetuning else task.versioned_model
        template = load_template(name, task.system, template_name=task.template)
        loaded = load_model(name, template, task.quant, task.run.device)
        model = finetuning.load_finetuned(loaded, run) if with_adapter else loaded.model
        return Target(model.eval(), template, loaded.compute_dtype)
    adapter = path if (path / ADAPTER_CONFIG).exists() else None
    config = read_adapter_config(path) if adapter else {"base_model_name_or_path": target}
    base = "@".join(str(config[key]) for key in ("base_model_name_or_path", "revision") if config.get(key))
    if not base:
        raise ModelError(
            f"{path / ADAPTER_CONFIG}: base_model_name_or_path is empty; write the folder of the base model there."
        )
    template = load_template(base, system, template_name=template_name)
    loaded = load_model(base, template, Quant.model_validate({"bits": bits}))
    model = load_llama_or_internlm2_adapter(loaded.model, adapter) if adapter and with_adapter else loaded.model
    return Target(model.eval(), template, loaded.compute_dtype)


def open_vlm(task: ImageTask, run: RunDir | None) -> Target:
    """Load the model of an image task: as trained by a run, or with `run=None` as at the start of training."""
    if run is not None:
        check_finetuned(run, task)
        template = load_vlm_template(finetuned_task(run, task))
        loaded, parts = load_finetuned(run, task, template)
    else:
        template = load_vlm_template(task)
        loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
        parts = make_initial_parts(task, loaded)
    table = PictureTable()
    module = build_vlm(parts, LiveFeatures(parts.tower, table, 0), loaded.compute_dtype)
    return Target(parts.language.network.eval(), template, loaded.compute_dtype, make_embed_function(module, table))


def embedded_vlm_task(bits: int = 4, system: str | None = None, start: str = EMBEDDED) -> ImageTask:
    """A task with the embedded model, tower and projector, for use without training."""
    task, _ = read_task(shipped_file("image/embedded-align.yaml"), [f"quant.bits={bits}"])
    assert isinstance(task, ImageTask)
    return task.model_copy(update={"start": start, "system": task.system if system is None else system})
