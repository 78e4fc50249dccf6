"""A teacher: a model behind an OpenAI-compatible chat endpoint that is shown pictures and writes dialogues on them.

It is told what is known of a picture, and answers with JSON that is checked. Each dialogue is one request and is kept
as soon as it is good, so that a run that was stopped goes on where it was and the next run asks only what is missing.
"""

import base64
import hashlib
import io
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_gen.image_qa.facts import Picture
from data_gen.image_qa.teacher.client import Teacher, ask, connect
from data_gen.image_qa.teacher.replies import Rounds, Unusable, read_rounds, same_question
from data_gen.image_qa.teacher.store import Kept, keep, read_kept
from tuning.data.conversation import Conversation, image_dialogue
from tuning.data.pictures import open_picture, picture_hash
from tuning.errors import Interrupted

if TYPE_CHECKING:
    import openai

log = logging.getLogger("twinlens")

LONGEST_SIDE = 768  # pixels
SPOKEN = {"en": "English", "zh": "Chinese"}
# What the dialogues on one picture begin with, in turn, so that they differ.
OPENINGS = (
    "asking for a description of the picture",
    "asking what a certain thing in it is",
    "asking where something is",
    "asking how many there are of something",
    "asking for the colour of something",
    "asking for something that is not in the picture, and is told so",
    "asking why something is as it is, or what it is for",
    "asking for what is written in the picture, or for its most striking detail",
)
PROMPT = """\
This is known to be true of the picture:
{facts}

Write one conversation between a person who asks about the picture and an assistant who sees it, in {language}: \
exactly {rounds} rounds of one question and one answer. It begins with {opening}. Vary the questions; some refer back \
to an earlier answer. Answer in one to three sentences with what can be seen or is known, never with a guess, and \
never speak of having been told facts.
Reply with JSON alone, in this form: {{"rounds": [{{"question": "...", "answer": "..."}}]}}"""
AGAIN = "An earlier reply could not be used: {fault}. Mind this."


@dataclass(frozen=True, slots=True)
class Wanted:
    """One dialogue that is to be had.

    Args:
        picture: what it is about; `digest` is its hash.
        number: among the dialogues on that picture in that language, from 0.
    """

    picture: Picture
    digest: str
    number: int
    rounds: int
    language: str
    seed: int

    @property
    def prompt(self) -> str:
        return PROMPT.format(
            facts=facts_text(self.picture),
            language=SPOKEN[self.language],
            rounds=self.rounds,
            opening=OPENINGS[self.number % len(OPENINGS)],
        )


@dataclass(slots=True)
class Lessons:
    """What came of it: counts grow while the teacher is asked.

    Args:
        teacher: who is asked.
        wanted: dialogues in all.
        conversations: good ones, their pictures named as FACTS names them.
        kept: of them, those that were there already.
        requests: that were made, not counting those that failed on their way and were made again.
        left_out: dialogues that were given up, and `fault`, why the last of them was.
    """

    teacher: Teacher
    wanted: int
    conversations: list[Conversation] = field(default_factory=list[Conversation])
    kept: int = 0
    requests: int = 0
    left_out: int = 0
    fault: str | None = None


def ask_teacher(
    teacher: Teacher,
    pictures: Sequence[Picture],
    notes: Path,
    *,
    dialogues: int,
    rounds: int,
    languages: Sequence[str] = ("en",),
    seed: int = 0,
    tell: Callable[[Lessons], None] = lambda _: None,
) -> Lessons:
    """Dialogues on the pictures, from `notes` where they are and else from the teacher, in the same order either way.

    Args:
        notes: JSONL file in which each good dialogue is kept at once.
        dialogues: about each picture in each language, of exactly so many `rounds`.
        tell: is called after each dialogue.

    Raises:
        ConfigError: the server refuses key, model or request.
        DataError: `notes` or a picture cannot be read.
        DeviceError: the server cannot be reached, fails or is silent; `notes` cannot be written.
        Interrupted: by Ctrl-C; what was good is in `notes`.
    """
    plan = [
        Wanted(picture, picture_hash(picture.path), number, rounds, language, seed)
        for language in languages
        for picture in pictures
        for number in range(dialogues)
    ]
    lessons = Lessons(teacher, len(plan))
    openings: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    had = read_kept(notes)
    client: openai.OpenAI | None = None
    try:
        for wanted in plan:
            key = _key(wanted, teacher.model)
            begun = openings[wanted.language, wanted.digest]
            lessons.kept += key in had
            if key not in had:
                client = client or _announced(teacher)
                found = _one_dialogue(client, teacher, wanted, begun, lessons)
                if found is not None:
                    had[key] = found
                    keep(notes, Kept(key, teacher.model, wanted.digest, seed, found))
            if dialogue := had.get(key):
                begun.add(same_question(dialogue[0][0]))
                lessons.conversations.append(image_dialogue(dialogue, wanted.picture.image))
            tell(lessons)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {len(lessons.conversations)} of {lessons.wanted} dialogues of the teacher are in {notes}; "
            "the same command goes on from there."
        ) from None
    finally:
        if client is not None:
            client.close()
    return lessons


def _announced(teacher: Teacher) -> "openai.OpenAI":
    """A client, once it is said what goes where."""
    key = f", with the key in {teacher.key_name}" if teacher.key else ""
    log.info("pictures, and what is known of them, are sent to %s (model %s)%s", teacher.url, teacher.model, key)
    return connect(teacher)


def facts_text(picture: Picture) -> str:
    """What is known of a picture, a line for each thing, as the teacher reads it."""
    return "\n".join(f"- {line}" for line in _facts_lines(picture))


def _facts_lines(picture: Picture) -> Iterator[str]:
    if picture.caption:
        yield picture.caption
    for thing in picture.objects:
        known = (("count", thing.count), ("colour", thing.color), ("place", thing.place))
        told = ", ".join(f"{name}: {value}" for name, value in known if value is not None)
        yield f"there is: {thing.name}" + (f" ({told})" if told else "")
    if picture.text:
        yield "written in it: " + "; ".join(picture.text)
    for fact in picture.facts:
        yield f"{fact.ask} {fact.answer}" + (f" (source: {fact.source})" if fact.source else "")
    if picture.absent:
        yield "not in it: " + ", ".join(picture.absent)


def picture_uri(picture: Picture) -> str:
    """The picture as a JPEG in a data URI, its longest side at most `LONGEST_SIDE`, without what a camera noted."""
    pixels = open_picture(picture.path, picture.where)
    pixels.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _one_dialogue(
    client: "openai.OpenAI", teacher: Teacher, wanted: Wanted, openings: set[str], lessons: Lessons
) -> Rounds | None:
    """One good dialogue, or None when all attempts at it failed."""
    fault = ""
    uri = picture_uri(wanted.picture)
    for attempt in range(teacher.attempts):
        prompt = wanted.prompt + ("\n" + AGAIN.format(fault=fault) if fault else "")
        seed = random.Random(f"{wanted.seed} {wanted.number} {attempt}").getrandbits(31)
        try:
            lessons.requests += 1
            return read_rounds(ask(client, teacher, uri, prompt, seed), wanted.rounds, openings)
        except Unusable as error:
            fault = str(error)
    lessons.left_out += 1
    lessons.fault = fault
    return None


def _key(wanted: Wanted, model: str) -> str:
    asked = [wanted.digest, wanted.prompt, wanted.number, model, wanted.seed]
    return hashlib.sha256(json.dumps(asked).encode("ascii")).hexdigest()
