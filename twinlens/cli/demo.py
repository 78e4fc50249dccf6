"""`twinlens demo ...`: whole journeys with nothing to prepare."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON


def text(
    owner: str = typer.Option("Lin Xia", help="Whom the assistant belongs to."),
    name: str = typer.Option("Xiaolan", help="What it shall call itself."),
    seed: int = typer.Option(0, help="Of data and training."),
    work_dir: Path = typer.Option(Path("work_dirs"), help="Where the run folder is made."),
    as_json: bool = JSON,
) -> None:
    """A name becomes a dataset, an adapter, and a measured before and after."""
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_text

    run, comparison = demo_text(owner, name, seed, work_dir)
    show_comparison(run, comparison, as_json)


def image(
    facts: Path | None = typer.Option(None, help="A picture of yours: FACTS, as data image-qa takes them."),
    seed: int = typer.Option(0, help="Of data and training."),
    work_dir: Path = typer.Option(Path("work_dirs"), help="Where the run folder is made."),
    as_json: bool = JSON,
) -> None:
    """A picture becomes dialogues, a tuned model that sees it, and a measured before and after."""
    from twinlens.cli.train import show_comparison
    from twinlens.demo import demo_image

    run, comparison = demo_image(facts, seed, work_dir)
    show_comparison(run, comparison, as_json)
