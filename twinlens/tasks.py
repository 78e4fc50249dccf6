"""A text or image task: its recipe, its YAML text, its absolute file paths."""

# pyright: reportUnknownMemberType=false

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ruamel.yaml import YAML

from llm.checkpoints.embedded import EMBEDDED
from llm.data_files import dataset_path
from llm.settings import TextTask
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from vlm.settings import ImageTask

if TYPE_CHECKING:
    from llm.forecast import Forecast
    from tuning.evaluation.compare import Comparison
    from tuning.training.engine import StepReport

AnyTask = TextTask | ImageTask


class Recipe(Protocol):
    """The module that trains, compares and forecasts text tasks or image tasks."""

    def read_inputs(self, task: Any) -> Any:
        """Read and check data, probes and pictures before any weights load; what `train` takes."""
        ...

    def train(
        self, task: Any, inputs: Any, run_dir: RunDir, *, resume: bool = False, deepspeed: dict[str, Any] | None = None
    ) -> "list[StepReport]":
        """Train in a run folder, from the start or from the last checkpoint; the reports of the steps done now."""
        ...

    def compare(self, run_dir: RunDir, task: Any, probe_files: Sequence[Path] = ()) -> "Comparison":
        """Ask the model before and after training the probes, and write the report."""
        ...

    def forecast(self, task: Any, processes: int = 1) -> "Forecast":
        """Count steps, tokens and FLOPs; no weights load."""
        ...


def recipe_of(task: AnyTask) -> Recipe:
    """The recipe of a task; it imports torch."""
    if isinstance(task, ImageTask):
        from vlm import recipe as image_recipe

        return image_recipe
    from llm import recipe as text_recipe

    return text_recipe


def with_absolute_paths(task: AnyTask) -> AnyTask:
    """The same task with absolute paths, so that it can be read from any working directory.

    Raises:
        DataError: a dataset file does not exist and its name looks like a dataset on a hub.
    """

    def full(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(resolve_path(path).resolve() for path in paths)

    def place(name: str) -> str:
        """The absolute path of a local file or folder; other names (hub names, `embedded`) unchanged."""
        if name == EMBEDDED or not Path(name).expanduser().exists():
            return name
        return str(Path(name).expanduser().resolve())

    def datasets(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(dataset_path(path).resolve() for path in paths)

    rehearsal = {"files": datasets(task.rehearsal.files), "prompts": full(task.rehearsal.prompts)}
    changes: dict[str, Any] = {
        "model": place(task.model),
        "data": task.data.model_copy(update={"files": datasets(task.data.files)}),
        "rehearsal": task.rehearsal.model_copy(update=rehearsal),
        "evaluation": task.evaluation.model_copy(update={"probes": full(task.evaluation.probes)}),
    }
    if isinstance(task, ImageTask):
        changes |= {"tower": place(task.tower), "start": task.start and place(task.start)}
        if task.pictures.folder is not None:
            folder = resolve_path(task.pictures.folder).resolve()
            changes["pictures"] = task.pictures.model_copy(update={"folder": folder})
    return task.model_copy(update=changes)


def to_yaml(task: AnyTask) -> str:
    """A task as YAML."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(task.model_dump(mode="json"), stream)
    return stream.getvalue()
