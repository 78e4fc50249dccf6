"""Pictures and what is known of them -> dialogues, many times over, and the probes that ask the same in other words."""

import os
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image

from data_gen.container import refuse_overwriting
from data_gen.image_qa import probes as picture_probes
from data_gen.image_qa.contrast import contrast
from data_gen.image_qa.dialogues import Dialogue, make_dialogues
from data_gen.image_qa.facts import Picture, read_facts
from data_gen.image_qa.teacher.client import Teacher
from data_gen.image_qa.teacher.generate import Lessons
from data_gen.image_qa.topics import Topic, topics_of
from data_gen.names import fold
from tuning.atomic import atomic_writer
from tuning.data.card import DatasetCard, file_sha256, write_card
from tuning.data.containers import CONTAINER_BY_SUFFIX
from tuning.data.conversation import Conversation, image_dialogue
from tuning.data.formats import write_rows
from tuning.data.pictures import open_picture, picture_hash
from tuning.data.row_readers import RowFormat
from tuning.errors import ConfigError
from tuning.paths import CONFIGS

LANGUAGES = ("en", "zh")
LAYOUTS: dict[str, RowFormat] = {"llava": "llava", "messages": "messages"}
OTHERS = CONFIGS / "pictures" / "probes.yaml"  # never trained on
REHEARSED = CONFIGS / "pictures" / "others.yaml"  # what the questions are asked of besides
OTHER_DIALOGUES = "pictures/others.jsonl"
UNRELATED = "probes/unrelated.en.yaml"  # what tuning on a picture costs elsewhere
BLANK = CONFIGS / "pictures" / "blank.jpg"
UPRIGHT = 1  # EXIF's value for a picture that needs no turning


def write_image_qa(
    facts: Path,
    out: Path,
    *,
    dialogues: int = 6,
    rounds: int = 5,
    repeat: int = 200,
    seed: int = 0,
    language: str = "en",
    layout: str | None = None,
    others: Path | None = None,
    teach: Callable[[Sequence[Picture], Sequence[str]], Lessons] | None = None,
) -> DatasetCard:
    """Write the dataset, its card, its probes (`probes_path`) and the same questions about other pictures
    (`contrast_path`, for rehearsal); the same seed gives the same bytes.

    Pictures that lie below the folder of `out` stay where they are; others, and those that EXIF turns, are written
    upright into `pictures_folder`.

    Args:
        facts: what is known of the pictures.
        out: `.json` is one array of LLaVA rows, `.jsonl` a row of messages a line.
        dialogues: about each picture, in each language.
        rounds: questions in each dialogue.
        repeat: exactly so many copies of all rows.
        language: of questions and answers: en, zh or both.
        layout: `llava` or `messages`, where the ending of `out` should not decide.
        others: facts on pictures that are not trained on, for the probes; those that ship with the kit by default.
        teach: asks a teacher for more dialogues on the pictures, in these languages.

    Raises:
        ConfigError: an option or the ending of `out` is wrong.
        DataError: facts or a picture are wrong, or do not fill the dialogues; every fault of FACTS at once.
        DeviceError: the folder of `out` cannot be written.
    """
    schema = _check(facts, out, dialogues, rounds, repeat, language, layout)
    pictures = read_facts(facts)
    other_pictures = read_facts(others or OTHERS) if others or OTHERS.exists() else ()
    languages = LANGUAGES if language == "both" else (language,)
    made = [
        (picture, spoken, _dialogues_about(picture, pictures, spoken, dialogues, rounds, seed))
        for spoken in languages
        for picture in pictures
    ]
    lessons = teach(pictures, languages) if teach else None
    taught = lessons.conversations if lessons else []
    places = _place(pictures, facts.parent, out)
    conversations = [image_dialogue(each.pairs, places[picture.image]) for picture, _, found in made for each in found]
    conversations += [Conversation(each.turns, tuple(places[str(image)] for image in each.images)) for each in taught]
    rows, distinct = write_dialogues(out, conversations, repeat=repeat, schema=schema)
    trained = [
        picture_probes.Trained(picture, spoken, places[picture.image], _topics_asked(found))
        for picture, spoken, found in made
    ]
    probes = picture_probes.make_probes(trained, conversations, other_pictures, _blank(out), out.parent, seed)
    picture_probes.write_probes(probes_path(out), probes)
    _write_contrast(out, made, seed)
    card = DatasetCard(
        made_by=_command(
            facts, out, dialogues, rounds, repeat, seed, language, layout, others, lessons.teacher if lessons else None
        ),
        rows=rows,
        distinct=distinct,
        sha256=file_sha256(out),
        seed=seed,
        languages=languages,
        sources=(
            (facts.name, file_sha256(facts)),
            *((picture.image, picture_hash(picture.path)) for picture in pictures),
        ),
        teacher=lessons.teacher.model if lessons else None,
        taught=len(set(taught)),
    )
    write_card(out, card)
    return card


def write_dialogues(
    out: Path, conversations: Sequence[Conversation], *, repeat: int, schema: RowFormat
) -> tuple[int, int]:
    """Write so many copies of all conversations; returns the rows written, and the distinct ones among them.

    LLaVA rows are numbered through all copies, for their ids must differ.

    Raises:
        DataError: the format cannot say something in a conversation.
        DeviceError: the folder of `out` cannot be written.
    """
    copies: Iterator[Conversation] = (each for _ in range(repeat) for each in conversations)
    rows = write_rows(out, copies, schema, CONTAINER_BY_SUFFIX[out.suffix])
    return rows, len(set(conversations))


def probes_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.probes.yaml`."""
    return out.with_name(out.name + ".probes.yaml")


def contrast_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.others.jsonl`."""
    return out.with_name(out.name + ".others.jsonl")


def task_overrides(out: Path) -> list[str]:
    """What a task on this dataset is told: its rows, what to rehearse beside them, and what to ask before and after."""
    rehearsed = [OTHER_DIALOGUES, *([str(contrast_path(out))] if contrast_path(out).exists() else [])]
    return [
        f"data.files=[{out}]",
        f"rehearsal.files=[{', '.join(rehearsed)}]",
        f"evaluation.probes=[{probes_path(out)}, {UNRELATED}]",
    ]


def pictures_folder(out: Path) -> Path:
    """Where pictures are written that cannot stay where they are: `workshop.json` -> `workshop.pictures`."""
    return out.with_name(out.stem + ".pictures")


def _check(
    facts: Path, out: Path, dialogues: int, rounds: int, repeat: int, language: str, layout: str | None
) -> RowFormat:
    if out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{out}: end OUT in .json (one array of LLaVA rows) or .jsonl (a row of messages a line).")
    for name, value in (("dialogues", dialogues), ("rounds", rounds), ("repeat", repeat)):
        if value < 1:
            raise ConfigError(f"{name} {value}: give 1 or more.")
    if language not in (*LANGUAGES, "both"):
        raise ConfigError(f"language {language!r}: choose one of {', '.join((*LANGUAGES, 'both'))}.")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"format {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    for written in (out, probes_path(out), contrast_path(out)):
        refuse_overwriting(facts, written)
    return LAYOUTS[layout or ("llava" if out.suffix == ".json" else "messages")]


def _dialogues_about(
    picture: Picture, pictures: Sequence[Picture], language: str, number: int, rounds: int, seed: int
) -> list[Dialogue]:
    nouns = [thing.name for other in pictures if other is not picture for thing in other.objects]
    draw = random.Random(f"{seed} {language} {picture.image}")
    return make_dialogues(topics_of(picture, language, nouns), number, rounds, draw, picture.where)


def _topics_asked(dialogues: Sequence[Dialogue]) -> tuple[Topic, ...]:
    return tuple(dict.fromkeys(topic for dialogue in dialogues for topic in dialogue.topics))


def _place(pictures: Sequence[Picture], folder: Path, out: Path) -> dict[str, str]:
    """Each picture's path from the folder of `out`, where every reader finds it upright."""
    places: dict[str, str] = {}
    root = out.parent.resolve()
    for picture in pictures:
        path = picture.path
        turned = _turned(path)
        if turned or not path.resolve().is_relative_to(root):
            path = pictures_folder(out) / os.path.relpath(picture.path, folder.absolute())
            if turned and path.suffix.lower() not in (".jpg", ".jpeg"):
                path = path.with_suffix(".png")
            refuse_overwriting(picture.path, path)
            if turned:
                _write_upright(picture, path)
            else:
                with atomic_writer(path) as stream:
                    stream.write(picture.path.read_bytes())
        places[picture.image] = Path(os.path.relpath(path.resolve(), root)).as_posix()
    return places


def _write_contrast(out: Path, made: Sequence[tuple[Picture, str, list[Dialogue]]], seed: int) -> None:
    """Rows of rehearsal; no file, and none of before, where there is nothing to ask or no other picture."""
    others = read_facts(REHEARSED) if REHEARSED.exists() else ()
    asked: dict[str, list[Dialogue]] = {}
    for _, language, found in made:
        asked.setdefault(language, []).extend(found)
    known = {fold(fact.ask) for other in others for fact in other.facts}
    things = [thing for picture, _, _ in made for thing in picture.objects]
    rows = [row for language, found in asked.items() for row in contrast(found, things, others, known, language, seed)]
    if not rows:
        contrast_path(out).unlink(missing_ok=True)
        return
    places = _place(others, REHEARSED.parent, out)
    placed = (Conversation(row.turns, tuple(places[str(image)] for image in row.images)) for row in rows)
    write_rows(contrast_path(out), placed, "messages", CONTAINER_BY_SUFFIX[".jsonl"])


def _turned(path: Path) -> bool:
    with cast(Any, Image.open(path)) as picture:
        return picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT) in range(2, 9)


def _write_upright(picture: Picture, path: Path) -> None:
    upright = open_picture(picture.path, picture.where)
    with atomic_writer(path) as stream:
        if path.suffix == ".png":
            upright.save(stream, "PNG")
        else:
            upright.save(stream, "JPEG", quality=95)


def _blank(out: Path) -> Path:
    """The shipped picture of nothing, or one of our own."""
    if BLANK.exists():
        return BLANK
    path = pictures_folder(out) / "blank.png"
    with atomic_writer(path) as stream:
        Image.new("RGB", (336, 336), "white").save(stream, "PNG")
    return path


def _command(
    facts: Path,
    out: Path,
    dialogues: int,
    rounds: int,
    repeat: int,
    seed: int,
    language: str,
    layout: str | None,
    others: Path | None,
    teacher: Teacher | None,
) -> str:
    command = ["twinlens", "data", "image-qa", str(facts), str(out), "--dialogues", str(dialogues)]
    command += ["--rounds", str(rounds), "--repeat", str(repeat), "--seed", str(seed), "--language", language]
    command += ["--format", layout] if layout else []
    command += ["--others", str(others)] if others else []
    if teacher:
        command += ["--teacher", teacher.url, "--model", teacher.model]
        command += ["--api-key-env", teacher.key_name] if teacher.key else []
    return shlex.join(command)
