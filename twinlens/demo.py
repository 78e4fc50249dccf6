"""Complete examples with the embedded model: write a dataset, fine-tune, compare."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from data_gen.image_qa.write_dataset import task_overrides, write_image_qa
from data_gen.persona import Persona, write_persona
from tuning.evaluation.compare import Comparison
from tuning.paths import shipped_file
from twinlens.start import start
from twinlens.task_files import read_task
from twinlens.tasks import recipe_of

log = logging.getLogger("twinlens")


def demo_text(
    owner: str, name: str, seed: int, work_dir: Path, overrides: Sequence[str] = ()
) -> tuple[Path, Comparison]:
    """Write a persona dataset, train on it and compare; returns the run folder and the comparison."""
    data = work_dir / "demo-text" / "persona.jsonl"
    card = write_persona(data, Persona(owner=owner, name=name), seed=seed)
    log.info("1/3 data: %d rows about %s of %s: %s", card.rows, name, owner, data)
    overrides = [f"data.files=[{data}]", f"run.seed={seed}", *overrides]
    return _train_and_compare("demo-text", "text/embedded-persona.yaml", work_dir, overrides)


def demo_image(facts: Path | None, seed: int, work_dir: Path) -> tuple[Path, Comparison]:
    """Write dialogues about a picture, train on them and compare; returns the run folder and the comparison.

    Args:
        facts: file of facts about pictures; None uses the shipped picture of a workshop.
    """
    data = work_dir / "demo-image" / "picture.jsonl"
    facts = facts or shipped_file("pictures/workshop.yaml")
    card = write_image_qa(facts, data, dialogues=6, rounds=5, repeat=1, seed=seed)
    log.info("1/3 data: %d dialogues of 5 rounds: %s", card.rows, data)
    overrides = [*task_overrides(data), f"run.seed={seed}"]
    return _train_and_compare("demo-image", "image/embedded-picture.yaml", work_dir, overrides)


def _train_and_compare(name: str, config: str, work_dir: Path, overrides: Sequence[str]) -> tuple[Path, Comparison]:
    began = time.monotonic()
    task, _ = read_task(shipped_file(config), overrides)
    log.info("2/3 train: %s", config)
    run = start(task, name, work_dir).run
    log.info("3/3 compare: the same questions before and after training")
    comparison = recipe_of(task).compare(run, task)
    log.info("training and comparison took %.0f s", time.monotonic() - began)
    return run.path, comparison
