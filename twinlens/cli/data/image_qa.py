"""`twinlens data image-qa`: create dialogues about pictures from facts about them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_dataset

if TYPE_CHECKING:
    from data_gen.image_qa.facts import Picture
    from data_gen.image_qa.teacher.client import Teacher
    from data_gen.image_qa.teacher.generate import TeacherResult
    from tuning.data.card import DatasetCard


def image_qa(
    facts: Path = typer.Argument(
        metavar="FACTS",
        help="File with facts about pictures: YAML, JSON or CSV; picture paths are relative to its folder.",
    ),
    out: Path = typer.Argument(
        metavar="OUT",
        help="The file to write: .json is a JSON array, by default of llava rows; .jsonl has messages rows by default.",
    ),
    dialogues: int = typer.Option(6, help="Number of dialogues about each picture in each language."),
    rounds: int = typer.Option(5, help="Number of question-answer pairs in a dialogue."),
    repeat: int = typer.Option(200, help="Number of times that each dialogue is in OUT."),
    seed: int = typer.Option(0, help="Random seed of order and wording; the same seed gives the same bytes."),
    language: str = typer.Option(
        "en",
        help="Language of the questions and of the sentences around the facts: en, zh, or both (dialogues in each "
        "language). Texts of FACTS are not translated.",
    ),
    row_format: str | None = typer.Option(
        None, "--format", help="Row format: llava or messages. By default llava for .json, messages for .jsonl."
    ),
    others: Path | None = typer.Option(
        None,
        metavar="FACTS",
        help="Facts about other pictures, which are in no training row and no rehearsal row; the probes ask the same "
        "questions about them. By default shipped pictures.",
    ),
    teacher: str | None = typer.Option(
        None,
        metavar="URL",
        help="Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1. Its model (teacher) writes "
        "additional dialogues, --dialogues for each picture. Pictures and facts are sent to the server. By default "
        "there is no teacher.",
    ),
    model: str | None = typer.Option(None, help="Name of the teacher model on that server; required with --teacher."),
    api_key_env: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Name of the environment variable with the server's API key. By default OPENAI_API_KEY, if it is set.",
    ),
    as_json: bool = JSON,
) -> None:
    """Create dialogues about pictures, and test questions (probes) that ask the same in other words.

    The command writes OUT, the dataset card OUT.card.json, the probes OUT.probes.yaml, and OUT.others.jsonl: the
    same questions about other pictures, for rehearsal.files.

    FACTS is a list of pictures under the key `pictures`. Each needs `image`, its path, and at least one of
    `caption`, `objects` and `facts`. `objects` is a list of visible objects with name, color, count and place; only
    the name is required. `facts` is a list of facts that the picture does not show: ask (a question) and answer,
    and optionally source (who states the fact; a question asks for it), expect (a list of words or phrases; a correct
    answer contains one of them; by default the words of the answer that are not in the question) and also (a list: the
    question in other words). `text` is an optional list of texts
    written in the picture, `absent` an optional list of objects that are not in it.

    In CSV the columns are image, caption, name, color, count, place, text, ask, answer, source and absent. Each row
    adds an object, text, fact or absent object to its picture; an empty image means the picture of the row above.
    """
    from data_gen.image_qa.teacher.generate import ask_teacher
    from data_gen.image_qa.teacher.store import store_path
    from data_gen.image_qa.write_dataset import write_image_qa
    from tuning.progress import ProgressBar

    connection = _teacher(teacher, model, api_key_env)
    results: list[TeacherResult] = []

    def ask(pictures: "Sequence[Picture]", languages: Sequence[str]) -> "TeacherResult":
        assert connection
        with ProgressBar("dialogues of the teacher", len(pictures) * len(languages) * dialogues) as progress:

            def on_dialogue(result: "TeacherResult") -> None:
                progress.advance(note=f"{result.left_out} left out" if result.left_out else "")

            results.append(
                ask_teacher(
                    connection, pictures, store_path(out),
                    dialogues=dialogues, rounds=rounds, languages=languages, seed=seed, on_dialogue=on_dialogue,
                )
            )  # fmt: skip
        return results[0]

    card = write_image_qa(
        facts, out, dialogues=dialogues, rounds=rounds, repeat=repeat, seed=seed, language=language,
        row_format=row_format, others=others, ask_teacher=ask if connection else None,
    )  # fmt: skip
    _print_written(out, card, rounds, results, as_json)


def _print_written(
    out: Path, card: "DatasetCard", rounds: int, results: "Sequence[TeacherResult]", as_json: bool
) -> None:
    """Print what was written, and the command that trains on it."""
    from data_gen.image_qa.teacher.store import store_path
    from data_gen.image_qa.write_dataset import contrast_path, probes_path, task_overrides
    from tuning.evaluation.probes import read_probes

    groups = [probe.group for probe in read_probes(probes_path(out))]
    counts = ", ".join(f"{groups.count(group)} {group}" for group in dict.fromkeys(groups))
    rehearsal = contrast_path(out) if contrast_path(out).exists() else None
    lines = [
        f"{out}: {card.rows:,} rows ({card.distinct:,} distinct) of {rounds} questions",
        f"{probes_path(out)}: {counts or 'no probes'}",
    ]
    if rehearsal:
        lines.append(f"{rehearsal}: the same questions about other pictures, for rehearsal")
    for result in results:
        lines.append(
            f"{store_path(out)}: {len(result.conversations)} dialogues of the teacher {result.teacher.model}, "
            f"{result.stored} of them from an earlier run"
        )
        if result.left_out:
            lines.append(
                f"left out: {result.left_out} of the teacher's dialogues, because no reply was usable (last error: "
                f"{result.error}); run the same command again to ask for them again"
            )
    following = command("train", "configs/image/embedded-picture.yaml", *task_overrides(out))
    left_out = sum(result.left_out for result in results)
    print_dataset(out, card, lines, following, as_json, probes=probes_path(out), rehearsal=rehearsal, left_out=left_out)


def _teacher(url: str | None, model: str | None, key_name: str | None) -> "Teacher | None":
    from data_gen.image_qa.teacher.client import make_teacher

    if url is None:
        if model is not None or key_name is not None:
            raise ConfigError("--model, --api-key-env: apply only to a teacher; add --teacher URL.")
        return None
    if not model:
        raise ConfigError("--model: is missing; give the name of the teacher's model on its server.")
    if key_name is not None and not os.environ.get(key_name):
        raise ConfigError(f"--api-key-env {key_name}: that variable is not set; set it to the server's API key.")
    name = key_name or "OPENAI_API_KEY"
    return make_teacher(url, model, name, os.environ.get(name))
