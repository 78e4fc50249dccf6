"""`twinlens data image-qa`: pictures and what is known of them, as dialogues."""

import shlex
from pathlib import Path

import typer

from tuning.card import card_path, card_to_dict
from twinlens.cli.data import app
from twinlens.cli.output import JSON, finish


@app.command("image-qa")
def image_qa(
    facts: Path = typer.Argument(
        metavar="FACTS", help="What is known of the pictures: YAML, JSON or CSV, picture paths relative to it."
    ),
    out: Path = typer.Argument(metavar="OUT", help="Where to write: .json is LLaVA rows, .jsonl rows of messages."),
    dialogues: int = typer.Option(6, help="Dialogues about each picture, in each language."),
    rounds: int = typer.Option(5, help="Questions, with their answers, in each dialogue."),
    repeat: int = typer.Option(200, help="Write exactly so many copies of each dialogue."),
    seed: int = typer.Option(0, help="Of order and phrasing; the same seed gives the same bytes."),
    language: str = typer.Option("en", help="Of questions and answers: en, zh or both."),
    layout: str | None = typer.Option(None, "--format", help="llava or messages, if OUT's ending should not decide."),
    others: Path | None = typer.Option(
        None, metavar="FACTS", help="Pictures that are not trained on, for the probes; those that ship by default."
    ),
    as_json: bool = JSON,
) -> None:
    """Make dialogues about pictures, and probes that ask the same in other words.

    FACTS is a list under `pictures`: image, caption, objects (name, color, count, place), text (a list), facts (ask,
    answer, source, expect, also), absent (a list). A caption, an object or a fact is needed. As CSV its columns are
    image, caption, name, color, count, place, text, ask, answer, source, absent; a row without an image goes on with
    the picture above.
    """
    from data_gen.image_qa import probes_path, write_image_qa
    from tuning.probes import read_probes

    card = write_image_qa(
        facts,
        out,
        dialogues=dialogues,
        rounds=rounds,
        repeat=repeat,
        seed=seed,
        language=language,
        layout=layout,
        others=others,
    )
    probes = probes_path(out)
    groups = [probe.group for probe in read_probes(probes)]
    counted = ", ".join(f"{groups.count(group)} {group}" for group in dict.fromkeys(groups))
    command = ["twinlens", "train", "configs/image/embedded-picture.yaml"]
    finish(
        {"out": out, "card": card_path(out), "probes": probes} | card_to_dict(card),
        [
            f"{out}: {card.rows:,} rows, {card.distinct:,} of them distinct, {rounds} questions each",
            f"{probes}: {counted or 'nothing that could be asked'}",
        ],
        shlex.join([*command, f"data.files=[{out}]", f"evaluation.probes=[{probes}]"]),
        as_json,
    )
