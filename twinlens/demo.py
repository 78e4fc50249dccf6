"""Whole journeys with nothing to prepare, on the embedded default."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from data_gen.image_qa.write import task_overrides, write_image_qa
from data_gen.persona import Persona, write_persona
from tuning.evaluation.compare import Comparison
from tuning.paths import shipped_file
from twinlens.start import start
from twinlens.task_files import read_task
from twinlens.tasks import recipe_of

log = logging.getLogger("twinlens")
TEXT = "text/embedded-persona.yaml"
IMAGE = "image/embedded-picture.yaml"
WORKSHOP = "pictures/workshop.yaml"


def demo_text(
    owner: str, name: str, seed: int, work_dir: Path, overrides: Sequence[str] = ()
) -> tuple[Path, Comparison]:
    """A name becomes a dataset, an adapter and a measured before and after; the run folder and what was measured."""
    data = work_dir / "demo-text" / "persona.jsonl"
    card = write_persona(data, Persona(owner=owner, name=name), seed=seed)
    log.info("1/3 data: %d rows about %s of %s: %s", card.rows, name, owner, data)
    return _train_and_compare("demo-text", TEXT, work_dir, [f"data.files=[{data}]", f"run.seed={seed}", *overrides])


def demo_image(facts: Path | None, seed: int, work_dir: Path, overrides: Sequence[str] = ()) -> tuple[Path, Comparison]:
    """A picture and what is known of it become dialogues, a tuned model and a measured before and after.

    Args:
        facts: what is known of pictures; the workshop that ships with the kit when None.
    """
    data = work_dir / "demo-image" / "picture.jsonl"
    card = write_image_qa(facts or shipped_file(WORKSHOP), data, dialogues=6, rounds=5, repeat=1, seed=seed)
    log.info("1/3 data: %d dialogues of 5 rounds: %s", card.rows, data)
    given = [*task_overrides(data), f"run.seed={seed}", *overrides]
    return _train_and_compare("demo-image", IMAGE, work_dir, given)


def _train_and_compare(name: str, config: str, work_dir: Path, overrides: Sequence[str]) -> tuple[Path, Comparison]:
    began = time.monotonic()
    task, _ = read_task(shipped_file(config), overrides)
    log.info("2/3 train: %s", config)
    trained = start(task, name, work_dir)
    log.info("3/3 compare: the same questions before and after")
    comparison = recipe_of(task).compare(trained.run, task)
    log.info("the whole of it took %.0f s", time.monotonic() - began)
    return trained.run.path, comparison
