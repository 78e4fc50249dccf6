"""`twinlens demo text` and `twinlens demo image`: complete examples."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON, WORK_DIR

SEED = typer.Option(0, help="Random seed of data and training.")
FOLDER = typer.Option(WORK_DIR, help="Folder in which dataset and run folder are created, in demo-text or demo-image.")


def text(
    owner: str = typer.Option("Lin Xia", help="Owner and maker of the assistant."),
    name: str = typer.Option("Xiaolan", help="Name of the assistant."),
    seed: int = SEED,
    work_dir: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Create a persona dataset, train an adapter on it, and compare the answers before and after training.

    The base model is the embedded model, SmolLM2-135M-Instruct.
    """
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_text

    show_comparison(*demo_text(owner, name, seed, work_dir), as_json)


def image(
    facts: Path | None = typer.Option(
        None, help="File with facts about your own pictures, as for `data image-qa`. By default a shipped picture."
    ),
    seed: int = SEED,
    work_dir: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Create dialogues about a picture, train on them, and compare the answers before and after training.

    The base model is the embedded model, SmolLM2-135M-Instruct, with the embedded vision tower, EfficientNet-Lite0.
    """
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_image

    show_comparison(*demo_image(facts, seed, work_dir), as_json)
