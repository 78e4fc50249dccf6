"""What a run trains on: the data, what it says of itself, and the rehearsal mixed in."""

import json
import logging
import math
from collections.abc import Iterable, Sequence

import numpy as np
from accelerate import PartialState

from llm.chat_template.encoding import ChatTemplate
from llm.dataset import EncodedData
from llm.loading import LoadedModel
from llm.rehearsal import answer_rehearsal_prompts
from llm.sources import persona_card
from tuning.atomic import write_atomically
from tuning.data.card import DatasetCard, card_to_dict, file_sha256
from tuning.data.conversation import Conversation, to_jsonl
from tuning.data.formats import SourceRow
from tuning.errors import ConfigError
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from tuning.settings import Task
from tuning.training.packing import MicroBatches
from tuning.training.samples import EncodedSample

log = logging.getLogger("twinlens")


def log_system(task: Task, template: ChatTemplate) -> None:
    """State which system text the conversations will carry, whoever decided it."""
    if task.system:
        log.info("system text, from the task: %r", task.system)
    elif injected := template.default_system():
        log.info("system text, from the model's own chat template: %r; set `system` in the task to decide it", injected)


def write_data_facts(task: Task, data: EncodedData, run_dir: RunDir) -> DatasetCard | None:
    """`data.json`: the files, their hashes, the card of the persona they speak of."""
    files = [resolve_path(file) for file in task.data.files]
    card = persona_card(files)
    facts = {
        "files": [{"path": str(file), "sha256": file_sha256(file)} for file in files],
        "rows": len(data.rows),
        "distinct": len(data.samples),
        "validation": len(data.validation),
        "repeat": task.data.repeat,
        "card": card_to_dict(card) if card else None,
    }
    if PartialState().is_main_process:
        write_atomically(run_dir.data, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    log.info("data: %d rows, %d distinct, %d held out", len(data.rows), len(data.samples), len(data.validation))
    return card


def rehearsal_rows(task: Task, loaded: LoadedModel, run_dir: RunDir, given: int = 0) -> list[SourceRow]:
    """The base model's answers, by one process first so that all train on the same; kept in the run folder.

    Args:
        given: how many rows `rehearsal.files` hold, for the record.
    """
    rehearsed: list[Conversation] = []
    state = PartialState()
    if task.rehearsal.prompts and task.rehearsal.ratio:
        with state.main_process_first():
            rehearsed = answer_rehearsal_prompts(
                loaded, task.rehearsal, rehearsal_prompt_limit(task, state.num_processes), task.run.seed
            )
        if not rehearsed:
            raise ConfigError(
                f"rehearsal.max_new_tokens: no answer of the base ends within {task.rehearsal.max_new_tokens} tokens; "
                "raise it, or leave rehearsal.prompts out."
            )
    if state.is_main_process and (rehearsed or given):
        write_atomically(run_dir.rehearsal, to_jsonl(rehearsed))
        facts = json.loads(run_dir.data.read_text(encoding="utf-8"))
        facts["rehearsal"] = {"rows": len(rehearsed) + given, "ratio": task.rehearsal.ratio}
        write_atomically(run_dir.data, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    return [SourceRow(number, f"rehearsal {row.question[:40]!r}", row) for number, row in enumerate(rehearsed, 1)]


def rehearsal_prompt_limit(task: Task, processes: int) -> int | None:
    """How many prompts are answered at most: no more than a run of few steps can see; None where neither is known."""
    if task.optim.steps is None or task.data.pack:
        return task.rehearsal.max_prompts
    rows = task.optim.steps * task.optim.accumulate * task.optim.micro_batch * processes
    seen = math.ceil(rows * task.rehearsal.ratio / (1 + task.rehearsal.ratio))
    return min(seen, task.rehearsal.max_prompts or seen)


def distinct_rows(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """Each conversation once."""
    return list({row.conversation: row for row in rows}.values())


def make_batches(
    task: Task, data: EncodedData, rehearsal: Sequence[EncodedSample], pad_id: int, processes: int | None = None
) -> MicroBatches:
    """Data and rehearsal as the micro-batches of the whole run."""
    share = task.optim.accumulate * (processes or PartialState().num_processes)
    first = len(data.samples)
    return MicroBatches(
        [*data.samples, *rehearsal],
        data.rows,
        np.arange(first, first + len(rehearsal), dtype=np.int32),
        repeat=task.data.repeat,
        ratio=task.rehearsal.ratio,
        micro_batch=task.optim.micro_batch,
        max_length=task.data.max_length,
        packing=task.data.packing if task.data.pack else None,
        workers=task.data.pack_workers,
        pad_id=pad_id,
        seed=task.run.seed,
        epochs=task.optim.epochs,
        limit=task.optim.steps * share if task.optim.steps else None,
    )
