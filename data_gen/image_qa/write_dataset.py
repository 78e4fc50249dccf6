"""Write picture datasets: dialogue rows, probes, rehearsal rows and the card."""

import os
import random
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image

from data_gen.checks import check_choice, check_positive, check_suffix
from data_gen.container import refuse_overwriting
from data_gen.image_qa.contrast import contrast_rows
from data_gen.image_qa.dialogues import Dialogue, make_dialogues
from data_gen.image_qa.facts import Picture, read_facts
from data_gen.image_qa.make_probes import TrainedPicture, make_probes, write_probes
from data_gen.image_qa.teacher.generate import TeacherResult
from data_gen.image_qa.topics import topics_of
from tuning.atomic import atomic_writer
from tuning.data.card import DatasetCard, file_sha256, write_card
from tuning.data.containers import CONTAINER_BY_SUFFIX
from tuning.data.conversation import Conversation, image_dialogue
from tuning.data.formats import write_rows
from tuning.data.pictures import open_picture
from tuning.data.row_readers import RowFormat
from tuning.evaluation.probes import normalize
from tuning.paths import shipped_file

LANGUAGES = ("en", "zh")
ROW_FORMATS: dict[str, RowFormat] = {"llava": "llava", "messages": "messages"}
PROBE_PICTURES = "pictures/probes.yaml"  # never trained on
REHEARSAL_PICTURES = "pictures/others.yaml"
REHEARSAL_ROWS = "pictures/others.jsonl"
UNRELATED = "probes/unrelated.en.yaml"  # measures what fine-tuning on a picture costs elsewhere
BLANK = "pictures/blank.jpg"


def write_image_qa(
    facts: Path,
    out: Path,
    *,
    dialogues: int = 6,
    rounds: int = 5,
    repeat: int = 200,
    seed: int = 0,
    language: str = "en",
    row_format: str | None = None,
    others: Path | None = None,
    ask_teacher: Callable[[Sequence[Picture], Sequence[str]], TeacherResult] | None = None,
) -> DatasetCard:
    """Write the dataset, its card, its probes (`probes_path`) and rehearsal rows with the same questions about other
    pictures (`contrast_path`); the same seed gives the same bytes.

    Upright pictures below the folder of `out` are used in place; the others are copied upright to `pictures_folder`.

    Args:
        facts: the facts file.
        out: `.json` is one array of LLaVA rows, `.jsonl` is messages rows.
        dialogues: number of dialogues for each picture and language.
        rounds: number of questions in each dialogue.
        repeat: number of copies of each dialogue.
        language: of questions and answers: en, zh or both.
        row_format: `llava` or `messages`; the default depends on the suffix of `out`.
        others: facts file of pictures that are not trained on, for the probes; by default the shipped file.
        ask_teacher: returns additional dialogues about the pictures in these languages.

    Raises:
        ConfigError: an option or the suffix of `out` is wrong.
        DataError: the facts or a picture are wrong, or the facts are too few for the dialogues; all errors of the facts
            file are reported at once.
        DeviceError: the folder of `out` cannot be written.
    """
    counts = {"dialogues": dialogues, "rounds": rounds, "repeat": repeat}
    _check_arguments(facts, out, counts, language, row_format)
    pictures = read_facts(facts)
    probe_pictures = read_facts(others or shipped_file(PROBE_PICTURES))
    languages = LANGUAGES if language == "both" else (language,)
    trained = [
        TrainedPicture(picture, code, _dialogues_about(picture, pictures, code, dialogues, rounds, seed))
        for code in languages
        for picture in pictures
    ]
    result = ask_teacher(pictures, languages) if ask_teacher else None
    from_teacher = result.conversations if result else []
    images = _provide_pictures(pictures, facts.parent, out)
    conversations = [
        image_dialogue(dialogue.pairs, images[each.picture.image]) for each in trained for dialogue in each.dialogues
    ]
    conversations += [
        Conversation(row.turns, tuple(images[str(image)] for image in row.images)) for row in from_teacher
    ]
    # LLaVA rows are numbered through all copies, because their ids must differ.
    rows = write_rows(
        out,
        (row for _ in range(repeat) for row in conversations),
        ROW_FORMATS[row_format or ("llava" if out.suffix == ".json" else "messages")],
        CONTAINER_BY_SUFFIX[out.suffix],
    )
    paths = {name: out.parent / image for name, image in images.items()}
    probes = make_probes(trained, paths, conversations, probe_pictures, shipped_file(BLANK), seed)
    write_probes(probes_path(out), probes)
    _write_contrast(out, trained, seed)
    options = counts | {"seed": seed, "language": language, "format": row_format, "others": others}
    card = DatasetCard(
        made_by=_command(facts, out, options, result),
        rows=rows,
        distinct=len(set(conversations)),
        sha256=file_sha256(out),
        seed=seed,
        languages=languages,
        sources=((facts.name, file_sha256(facts)), *((each.image, file_sha256(each.path)) for each in pictures)),
        teacher=result.teacher.model if result else None,
        taught=len(set(from_teacher)),
    )
    write_card(out, card)
    return card


def _check_arguments(facts: Path, out: Path, counts: dict[str, int], language: str, row_format: str | None) -> None:
    check_suffix(out, ".json", ".jsonl")
    for name, value in counts.items():
        check_positive(name, value)
    check_choice("language", language, (*LANGUAGES, "both"))
    check_choice("format", row_format, (*ROW_FORMATS, None))
    for written in (out, probes_path(out), contrast_path(out)):
        refuse_overwriting(facts, written)


def _command(facts: Path, out: Path, options: dict[str, Any], result: TeacherResult | None) -> str:
    """The command that writes the dataset again."""
    if result:
        teacher = result.teacher
        key_name = teacher.api_key_env if teacher.key else None
        options |= {"teacher": teacher.url, "model": teacher.model, "api-key-env": key_name}
    words = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    return shlex.join(["twinlens", "data", "image-qa", str(facts), str(out), *words])


def probes_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.probes.yaml`."""
    return out.with_name(out.name + ".probes.yaml")


def contrast_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.others.jsonl`."""
    return out.with_name(out.name + ".others.jsonl")


def task_overrides(out: Path) -> list[str]:
    """Overrides of a task on this dataset: its rows, its rehearsal files and its probe files."""
    rehearsal = [REHEARSAL_ROWS, *([str(contrast_path(out))] if contrast_path(out).exists() else [])]
    return [
        f"data.files=[{out}]",
        f"rehearsal.files=[{', '.join(rehearsal)}]",
        f"evaluation.probes=[{probes_path(out)}, {UNRELATED}]",
    ]


def pictures_folder(out: Path) -> Path:
    """The folder of copied pictures: `workshop.json` -> `workshop.pictures`."""
    return out.with_name(out.stem + ".pictures")


def _dialogues_about(
    picture: Picture, pictures: Sequence[Picture], language: str, number: int, rounds: int, seed: int
) -> list[Dialogue]:
    nouns = [thing.name for other in pictures if other is not picture for thing in other.objects]
    rng = random.Random(f"{seed} {language} {picture.image}")
    return make_dialogues(topics_of(picture, language, nouns), number, rounds, rng, picture.where)


def _provide_pictures(pictures: Sequence[Picture], folder: Path, out: Path) -> dict[str, str]:
    """The path of each picture relative to the folder of `out`; a picture outside it or not upright is copied."""
    images: dict[str, str] = {}
    root = out.parent.resolve()
    for picture in pictures:
        path = picture.path
        with cast(Any, Image.open(path)) as opened:
            rotated = opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        if rotated or not path.resolve().is_relative_to(root):
            path = pictures_folder(out) / os.path.relpath(picture.path, folder.absolute())
            if rotated and path.suffix.lower() not in (".jpg", ".jpeg"):
                path = path.with_suffix(".png")
            refuse_overwriting(picture.path, path)
            with atomic_writer(path) as stream:
                if rotated:
                    upright = open_picture(picture.path, picture.where)
                    upright.save(stream, "PNG" if path.suffix == ".png" else "JPEG", quality=95)  # PNG ignores quality
                else:
                    stream.write(picture.path.read_bytes())
        images[picture.image] = Path(os.path.relpath(path.resolve(), root)).as_posix()
    return images


def _write_contrast(out: Path, trained: Sequence[TrainedPicture], seed: int) -> None:
    """Write the rehearsal rows; if there are none, delete the file of an earlier run."""
    facts = shipped_file(REHEARSAL_PICTURES)
    others = read_facts(facts)
    known = {normalize(fact.ask) for other in others for fact in other.facts}
    things = [thing for each in trained for thing in each.picture.objects]
    rows: list[Conversation] = []
    for language in dict.fromkeys(each.language for each in trained):
        dialogues = [dialogue for each in trained if each.language == language for dialogue in each.dialogues]
        rows += contrast_rows(dialogues, things, others, known, language, seed)
    if not rows:
        contrast_path(out).unlink(missing_ok=True)
        return
    images = _provide_pictures(others, facts.parent, out)
    copied = (Conversation(row.turns, tuple(images[str(image)] for image in row.images)) for row in rows)
    write_rows(contrast_path(out), copied, "messages", CONTAINER_BY_SUFFIX[".jsonl"])
