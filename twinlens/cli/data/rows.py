"""`twinlens data persona`, `repeat` and `rename`: write a persona dataset, repeat rows, replace names."""

from dataclasses import asdict
from pathlib import Path

import typer

from tuning.data.card import card_path
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_dataset, print_result

IN = typer.Argument(metavar="IN", help="Dataset file: a JSON array, or JSON lines (one row per line).")
OUT = typer.Argument(
    metavar="OUT", help="The file to write, of the same file type as IN; the dataset card is OUT.card.json."
)


def persona(
    out: Path = typer.Argument(
        metavar="OUT",
        help="The file to write: .json is a JSON array, .jsonl has one row per line. The dataset card is "
        "OUT.card.json.",
    ),
    owner: str | None = typer.Option(
        None,
        help="Owner and maker of the assistant. --owner and --name are required; with --question they are optional and "
        "only written to the dataset card.",
    ),
    name: str | None = typer.Option(None, help="Name of the assistant; see --owner."),
    model: str | None = typer.Option(
        None,
        help="Base model that the assistant names in its answers: only a text, no model is loaded. By default no "
        "answer names a base model. Needs --owner and --name.",
    ),
    language: str = typer.Option(
        "en", help="Language of questions and answers: zh, en or both. No effect with --question."
    ),
    turns: str = typer.Option(
        "both",
        help="single: one question per conversation. multi: two or three. both: about a third of the conversations "
        "are multi. No effect with --question.",
    ),
    repeat: int = typer.Option(1, help="Number of times that each row is in OUT."),
    seed: int = typer.Option(
        0, help="Random seed of the choice of answers and later questions; the same seed gives the same bytes."
    ),
    row_format: str = typer.Option(
        "messages", "--format", help="Row format: messages (that of OpenAI) or xtuner (that of XTuner)."
    ),
    question: list[str] = typer.Option(
        [],
        help="Your own question, written unchanged; may be given several times, each with an --answer. If given, the "
        "built-in questions are not used.",
    ),
    answer: list[str] = typer.Option(
        [], help="The answer to the --question at the same position; may be given several times."
    ),
    as_json: bool = JSON,
) -> None:
    """Create a dataset that teaches a model its identity (persona): its name, its owner and its base model."""
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
    number: int = typer.Option(
        ..., "-n", "--number", help="Number of times that each row is in OUT; 1 repeats nothing."
    ),
    as_json: bool = JSON,
) -> None:
    """Write all rows of a dataset several times in succession into one file.

    The setting data.repeat does the same in training, without such a file.
    """
    from data_gen.repeat import repeat_dataset

    card = repeat_dataset(source, out, number)
    lines = [f"{out}: {card.rows} rows ({card.distinct} distinct)"]
    print_dataset(out, card, lines, command("data", "inspect", out), as_json)


def rename(
    source: Path = IN,
    out: Path = OUT,
    old: list[str] = typer.Option(
        [], "--from", help="A name to replace; may be given several times, each with a --to."
    ),
    new: list[str] = typer.Option([], "--to", help="The new name for the --from at the same position."),
    as_json: bool = JSON,
) -> None:
    """Replace the given names in the texts of a dataset; JSON keys stay unchanged.

    A name with Chinese, Japanese or Korean characters is replaced wherever it occurs, any other name only as a
    whole word. Case and width must match; other spellings are reported, but not replaced.
    """
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
