"""Whole journeys with nothing to prepare, on the embedded default."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from data_gen.persona import Persona, write_persona
from tuning.compare import Comparison
from tuning.files import shipped
from twinlens.start import recipe_of, start
from twinlens.task_files import read_task

log = logging.getLogger("twinlens")
TEXT = "text/embedded-persona.yaml"


def demo_text(
    owner: str, name: str, seed: int, work_dir: Path, overrides: Sequence[str] = ()
) -> tuple[Path, Comparison]:
    """A name becomes a dataset, an adapter and a measured before and after; the run folder and what was measured."""
    began = time.monotonic()
    data = work_dir / "demo-text" / "persona.jsonl"
    card = write_persona(data, Persona(owner=owner, name=name), seed=seed)
    log.info("1/3 data: %d rows about %s of %s: %s", card.rows, name, owner, data)
    task, _ = read_task(shipped(TEXT), [f"data.files=[{data}]", f"run.seed={seed}", *overrides])
    log.info("2/3 train: %s", TEXT)
    trained = start(task, "demo-text", work_dir)
    log.info("3/3 compare: the same questions before and after")
    comparison = recipe_of(task).judge(trained.run, task)
    log.info("the whole of it took %.0f s", time.monotonic() - began)
    return trained.run.path, comparison
