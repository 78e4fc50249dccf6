"""`twinlens data persona`, `repeat` and `rename`: write a persona dataset, repeat rows, replace names."""

from dataclasses import asdict
from pathlib import Path

import typer

from tuning.data.card import card_path
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_dataset, print_result

IN = typer.Argument(metavar="IN", help="A dataset: a JSON array, or one JSON row per line.")
OUT = typer.Argument(metavar="OUT", help="The file to write; its card is written to the same folder.")


def persona(
    out: Path = typer.Argument(metavar="OUT", help="The file to write: .json is an array, .jsonl one row per line."),
    owner: str | None = typer.Option(None, help="Owner and maker of the assistant."),
    name: str | None = typer.Option(None, help="Name of the assistant."),
    model: str | None = typer.Option(None, help="Name of the base model that the assistant states."),
    language: str = typer.Option("en", help="Language of questions and answers: zh, en or both."),
    turns: str = typer.Option("both", help="Turns of a conversation: single, multi or both."),
    repeat: int = typer.Option(1, help="Number of copies of each row."),
    seed: int = typer.Option(0, help="Seed of the wording of answers; the same seed gives the same bytes."),
    row_format: str = typer.Option("messages", "--format", help="messages (OpenAI's) or xtuner."),
    question: list[str] = typer.Option([], help="A literal question, with --answer; replaces the phrase bank."),
    answer: list[str] = typer.Option([], help="The answer to the --question at the same position."),
    as_json: bool = JSON,
) -> None:
    """Create a dataset that teaches a model a persona."""
    from data_gen.persona import Persona, write_persona

    if len(question) != len(answer):
        raise ConfigError(f"{len(question)} --question and {len(answer)} --answer: give one answer for each question.")
    if (owner is None) != (name is None) or (owner is None and not question):
        raise ConfigError("--owner and --name: give both; they define the persona.")
    if owner is None and model is not None:
        raise ConfigError("--model: give --owner and --name too; they define the persona.")
    who = Persona(owner, name, model, language, turns) if owner is not None and name is not None else None
    pairs = list(zip(question, answer, strict=True))
    card = write_persona(out, who, seed=seed, repeat=repeat, row_format=row_format, pairs=pairs)
    lines = [
        f"{out}: {card.rows} rows ({card.distinct} distinct) in {' and '.join(card.languages)}",
        f"{card_path(out)}: the dataset card; markers of the persona: {', '.join(card.markers) or 'none'}",
    ]
    print_dataset(
        out, card, lines, command("train", "configs/text/embedded-persona.yaml", f"data.files=[{out}]"), as_json
    )


def repeat(
    source: Path = IN,
    out: Path = OUT,
    number: int = typer.Option(..., "-n", "--number", help="Number of copies of the rows."),
    as_json: bool = JSON,
) -> None:
    """Write all rows of a dataset several times; data.repeat of a task does the same without a file."""
    from data_gen.repeat import repeat_dataset

    card = repeat_dataset(source, out, number)
    lines = [f"{out}: {card.rows} rows ({card.distinct} distinct)"]
    print_dataset(out, card, lines, command("data", "inspect", out), as_json)


def rename(
    source: Path = IN,
    out: Path = OUT,
    old: list[str] = typer.Option([], "--from", help="A name to replace; may be given several times."),
    new: list[str] = typer.Option([], "--to", help="The new name for the --from at the same position."),
    as_json: bool = JSON,
) -> None:
    """Replace names of people in a dataset: full words in Latin scripts, in values and never in keys."""
    from data_gen.rename import rename_dataset

    if len(old) != len(new):
        raise ConfigError(f"{len(old)} --from and {len(new)} --to: give one new name for each old one.")
    pairs = list(zip(old, new, strict=True))
    card, tally = rename_dataset(source, out, pairs)
    lines = [
        *(f"{name} -> {other}: {tally.renamed[name]} times" for name, other in pairs),
        *(
            f"not replaced: {spelling!r}, {seen.count} times, first in line {seen.line}"
            for spelling, seen in tally.left.items()
        ),
        f"{out}: {card.rows} rows, {tally.changed} of them changed",
    ]
    result = {
        "out": out,
        "card": card_path(out),
        "rows": card.rows,
        "changed": tally.changed,
        "renamed": dict(tally.renamed),
        "left": {spelling: asdict(seen) for spelling, seen in tally.left.items()},
    }
    print_result(result, lines, command("data", "inspect", out), as_json)
