"""`twinlens data persona`, `data repeat` and `data rename`: make a persona dataset, copy rows, change names."""

import shlex
from dataclasses import asdict
from pathlib import Path

import typer

from tuning.data.card import card_path, card_to_dict
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, print_result

IN = typer.Argument(metavar="IN", help="A dataset: a JSON array, or one JSON row a line.")
OUT = typer.Argument(metavar="OUT", help="Where to write; its card lies beside it.")


def persona(
    out: Path = typer.Argument(metavar="OUT", help="Where to write: .json is one array, .jsonl a row a line."),
    owner: str | None = typer.Option(None, help="Whom the assistant belongs to, and who made it."),
    name: str | None = typer.Option(None, help="What the assistant is called."),
    model: str | None = typer.Option(None, help="Label of the model it says it is built on."),
    language: str = typer.Option("en", help="Of questions and answers: zh, en or both."),
    turns: str = typer.Option("both", help="Conversations of a single turn, of multi(ple) turns, or both."),
    repeat: int = typer.Option(1, help="Write exactly so many copies of each row."),
    seed: int = typer.Option(0, help="Of the phrasing of answers; the same seed gives the same bytes."),
    layout: str = typer.Option("messages", "--format", help="messages (OpenAI's) or xtuner."),
    question: list[str] = typer.Option([], help="A literal question, with --answer; replaces the phrase bank."),
    answer: list[str] = typer.Option([], help="The answer to the --question at the same place."),
    as_json: bool = JSON,
) -> None:
    """Make a dataset that teaches a model who it is."""
    from data_gen.persona import Persona, write_persona

    if len(question) != len(answer):
        raise ConfigError(f"{len(question)} --question and {len(answer)} --answer: give one answer for each question.")
    if (owner is None) != (name is None) or (owner is None and not question):
        raise ConfigError("--owner and --name: give both, to say who the assistant is.")
    who = None
    if owner is not None and name is not None:
        who = Persona(owner, name, model, language, turns)
    elif model is not None:
        raise ConfigError("--model: give --owner and --name too, to say who the assistant is.")
    pairs = list(zip(question, answer, strict=True))
    card = write_persona(out, who, seed=seed, repeat=repeat, layout=layout, pairs=pairs)
    print_result(
        {"out": out, "card": card_path(out)} | card_to_dict(card),
        [
            f"{out}: {card.rows} rows, {card.distinct} of them distinct, in {' and '.join(card.languages)}",
            f"{card_path(out)}: how it was made, and what betrays the persona: {', '.join(card.markers) or 'nothing'}",
        ],
        f"twinlens train configs/text/embedded-persona.yaml {shlex.quote(f'data.files=[{out}]')}",
        as_json,
    )


def repeat(
    source: Path = IN,
    out: Path = OUT,
    number: int = typer.Option(..., "-n", "--number", help="How many copies of the rows to write."),
    as_json: bool = JSON,
) -> None:
    """Write all rows of a dataset several times over; a task's data.repeat does the same without a file."""
    from data_gen.repeat import repeat_dataset

    card = repeat_dataset(source, out, number)
    print_result(
        {"out": out, "card": card_path(out)} | card_to_dict(card),
        [f"{out}: {card.rows} rows, {card.distinct} of them distinct"],
        shlex.join(["twinlens", "data", "inspect", str(out)]),
        as_json,
    )


def rename(
    source: Path = IN,
    out: Path = OUT,
    old: list[str] = typer.Option([], "--from", help="A name as it is spelled now; may be given several times."),
    new: list[str] = typer.Option([], "--to", help="What the name at the same place becomes."),
    as_json: bool = JSON,
) -> None:
    """Give the people of a dataset other names: whole words in Latin scripts, in values and never in keys."""
    from data_gen.rename import rename_dataset

    if len(old) != len(new):
        raise ConfigError(f"{len(old)} --from and {len(new)} --to: give one new name for each old one.")
    pairs = list(zip(old, new, strict=True))
    card, tally = rename_dataset(source, out, pairs)
    lines = [f"{name} -> {other}: {tally.renamed[name]} times" for name, other in pairs]
    lines += [
        f"left as it is: {spelling!r}, {seen.count} times, first in line {seen.line}"
        for spelling, seen in tally.left.items()
    ]
    lines.append(f"{out}: {card.rows} rows, {tally.changed} of them changed")
    print_result(
        {
            "out": out,
            "card": card_path(out),
            "rows": card.rows,
            "changed": tally.changed,
            "renamed": dict(tally.renamed),
            "left": {spelling: asdict(seen) for spelling, seen in tally.left.items()},
        },
        lines,
        shlex.join(["twinlens", "data", "inspect", str(out)]),
        as_json,
    )
