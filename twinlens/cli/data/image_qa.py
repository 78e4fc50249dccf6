"""`twinlens data image-qa`: pictures and what is known of them, as dialogues."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuning.data.card import card_path, card_to_dict
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, print_result

if TYPE_CHECKING:
    from data_gen.image_qa.facts import Picture
    from data_gen.image_qa.teacher.client import Teacher
    from data_gen.image_qa.teacher.generate import TeacherResult
    from tuning.data.card import DatasetCard


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
    teacher: str | None = typer.Option(
        None,
        metavar="URL",
        help="OpenAI-compatible server whose model writes as many dialogues again; pictures are sent to it.",
    ),
    model: str | None = typer.Option(None, help="The teacher's model, as that server names it."),
    api_key_env: str | None = typer.Option(
        None, metavar="NAME", help="Environment variable with the server's API key; OPENAI_API_KEY if it is set."
    ),
    as_json: bool = JSON,
) -> None:
    """Make dialogues about pictures, and probes that ask the same in other words.

    FACTS is a list under `pictures`: image, caption, objects (name, color, count, place), text (a list), facts (ask,
    answer, source, expect, also), absent (a list). A caption, an object or a fact is needed. As CSV its columns are
    image, caption, name, color, count, place, text, ask, answer, source, absent; a row without an image goes on with
    the picture above.
    """
    from data_gen.image_qa.write import write_image_qa

    asked = _teacher(teacher, model, api_key_env)
    result: list[TeacherResult] = []

    def teach(pictures: "Sequence[Picture]", languages: Sequence[str]) -> "TeacherResult":
        assert asked
        result.append(_ask(asked, out, pictures, languages, dialogues, rounds, seed))
        return result[0]

    card = write_image_qa(
        facts,
        out,
        dialogues=dialogues,
        rounds=rounds,
        repeat=repeat,
        seed=seed,
        language=language,
        row_format=layout,
        others=others,
        ask_teacher=teach if asked else None,
    )
    _report(out, card, rounds, result, as_json)


def _report(out: Path, card: "DatasetCard", rounds: int, result: "Sequence[TeacherResult]", as_json: bool) -> None:
    """What was written, and the command that trains on it."""
    from data_gen.image_qa.write import contrast_path, probes_path, task_overrides
    from tuning.evaluation.probes import read_probes

    probes = probes_path(out)
    groups = [probe.group for probe in read_probes(probes)]
    counted = ", ".join(f"{groups.count(group)} {group}" for group in dict.fromkeys(groups))
    rehearsal = contrast_path(out) if contrast_path(out).exists() else None
    written = {"out": out, "card": card_path(out), "probes": probes, "rehearsal": rehearsal}
    print_result(
        written | {"left_out": sum(each.left_out for each in result)} | card_to_dict(card),
        [
            f"{out}: {card.rows:,} rows, {card.distinct:,} of them distinct, {rounds} questions each",
            f"{probes}: {counted or 'nothing that could be asked'}",
            *([f"{rehearsal}: the same questions about other pictures, to rehearse"] if rehearsal else []),
            *(line for each in result for line in _told(each, out)),
        ],
        shlex.join(["twinlens", "train", "configs/image/embedded-picture.yaml", *task_overrides(out)]),
        as_json,
    )


def _teacher(url: str | None, model: str | None, api_key_env: str | None) -> "Teacher | None":
    from data_gen.image_qa.teacher.client import make_teacher

    if url is None:
        if model is not None or api_key_env is not None:
            raise ConfigError("--model, --api-key-env: are for a teacher; add --teacher with its server's address.")
        return None
    if not model:
        raise ConfigError("--model: is missing; name the teacher's model as its server does.")
    if api_key_env is not None and not os.environ.get(api_key_env):
        raise ConfigError(f"--api-key-env {api_key_env}: that variable is not set; set it to the server's API key.")
    name = api_key_env or "OPENAI_API_KEY"
    return make_teacher(url, model, name, os.environ.get(name))


def _ask(
    teacher: "Teacher",
    out: Path,
    pictures: "Sequence[Picture]",
    languages: Sequence[str],
    dialogues: int,
    rounds: int,
    seed: int,
) -> "TeacherResult":
    from data_gen.image_qa.teacher.generate import ask_teacher
    from data_gen.image_qa.teacher.store import store_path
    from tuning.progress import ProgressBar

    with ProgressBar("dialogues of the teacher", len(pictures) * len(languages) * dialogues) as counter:
        return ask_teacher(
            teacher,
            pictures,
            store_path(out),
            dialogues=dialogues,
            rounds=rounds,
            languages=languages,
            seed=seed,
            on_dialogue=lambda result: counter.advance(note=f"{result.left_out} left out" if result.left_out else ""),
        )


def _told(result: "TeacherResult", out: Path) -> Iterator[str]:
    from data_gen.image_qa.teacher.store import store_path

    yield (
        f"{store_path(out)}: {len(result.conversations)} dialogues of the teacher {result.teacher.model}, "
        f"{result.stored} of them from an earlier run"
    )
    if result.left_out:
        yield (
            f"left out: {result.left_out} of the teacher's dialogues, for no reply could be used (the last: "
            f"{result.error}); the same command asks for them again"
        )
