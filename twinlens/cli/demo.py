"""`twinlens demo text` and `twinlens demo image`: complete examples."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON, WORK_DIR

SEED = typer.Option(0, help="Seed of data and training.")
FOLDER = typer.Option(WORK_DIR, help="Where the run folder is created.")


def text(
    owner: str = typer.Option("Lin Xia", help="Owner and maker of the assistant."),
    name: str = typer.Option("Xiaolan", help="Name of the assistant."),
    seed: int = SEED,
    work_dir: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Create a persona dataset, train an adapter on it, and compare before and after."""
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_text

    show_comparison(*demo_text(owner, name, seed, work_dir), as_json)


def image(
    facts: Path | None = typer.Option(None, help="Facts about your picture, as `data image-qa` reads them."),
    seed: int = SEED,
    work_dir: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Create dialogues about a picture, train on them, and compare before and after."""
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_image

    show_comparison(*demo_image(facts, seed, work_dir), as_json)
