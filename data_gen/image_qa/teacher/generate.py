"""Request dialogues from a multimodal teacher model, check and store them.

The prompt contains the facts of a picture; the reply is JSON. Each valid dialogue is stored at once, so the next run
requests only the missing ones.
"""

import base64
import hashlib
import io
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.image_qa.facts import Picture
from data_gen.image_qa.teacher.client import Teacher, connect, request_reply
from data_gen.image_qa.teacher.replies import InvalidReply, Rounds, parse_rounds, question_key
from data_gen.image_qa.teacher.store import append_dialogue, read_dialogues
from tuning.data.card import file_sha256
from tuning.data.conversation import Conversation, image_dialogue
from tuning.data.pictures import open_picture
from tuning.errors import Interrupted
from tuning.paths import shipped_file
from tuning.yaml_files import read_yaml

if TYPE_CHECKING:
    import openai

MAX_SIDE = 768  # pixels


@cache
def _prompts() -> dict[str, Any]:
    return read_yaml(shipped_file("data/teacher.yaml"), "prompt file").values


@dataclass(frozen=True, slots=True)
class DialogueRequest:
    """One dialogue to request.

    Args:
        digest: sha256 of the picture file.
        number: index among the dialogues about that picture in that language, from 0.
    """

    picture: Picture
    digest: str
    number: int
    rounds: int
    language: str
    seed: int

    @property
    def prompt(self) -> str:
        prompts = _prompts()
        return prompts["prompt"].format(
            facts=facts_text(self.picture),
            language=prompts["languages"][self.language],
            rounds=self.rounds,
            opening=prompts["openings"][self.number % len(prompts["openings"])],
        )


@dataclass(slots=True)
class TeacherResult:
    """Dialogues of a teacher, with counts that grow while requests run.

    Args:
        total: number of requested dialogues.
        conversations: the valid dialogues; picture paths as in the facts file.
        stored: number of them from an earlier run.
        requests: number of requests, without retries after failed connections.
        left_out: dialogues without a valid reply; `error` is the reason of the last one.
    """

    teacher: Teacher
    total: int
    conversations: list[Conversation] = field(default_factory=list[Conversation])
    stored: int = 0
    requests: int = 0
    left_out: int = 0
    error: str | None = None


def ask_teacher(
    teacher: Teacher,
    pictures: Sequence[Picture],
    store: Path,
    *,
    dialogues: int,
    rounds: int,
    languages: Sequence[str] = ("en",),
    seed: int = 0,
    on_dialogue: Callable[[TeacherResult], None] = lambda _: None,
) -> TeacherResult:
    """Dialogues about the pictures, in a fixed order; from the file `store`, or else from the teacher.

    Args:
        store: JSONL file to which each valid dialogue is appended at once.
        dialogues: number for each picture and language, of exactly `rounds` rounds.
        on_dialogue: called after each dialogue.

    Raises:
        ConfigError: the server refuses the key, the model or the request.
        DataError: `store` or a picture cannot be read.
        DeviceError: the server cannot be reached, fails or times out; `store` cannot be written.
        Interrupted: Ctrl-C was pressed; the valid dialogues are in `store`.
    """
    plan = [
        DialogueRequest(picture, file_sha256(picture.path), number, rounds, language, seed)
        for language in languages
        for picture in pictures
        for number in range(dialogues)
    ]
    result = TeacherResult(teacher, len(plan))
    openings: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    stored = read_dialogues(store)
    client: openai.OpenAI | None = None
    try:
        for request in plan:
            key = _key(request, teacher.model)
            openings_used = openings[request.language, request.digest]
            result.stored += key in stored
            if key not in stored:
                client = client or connect(teacher)
                if reply := _request_dialogue(client, teacher, request, openings_used, result):
                    stored[key] = reply
                    append_dialogue(store, key, teacher.model, request.digest, seed, reply)
            if dialogue := stored.get(key):
                openings_used.add(question_key(dialogue[0][0]))
                result.conversations.append(image_dialogue(dialogue, request.picture.image))
            on_dialogue(result)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {len(result.conversations)} of {result.total} teacher dialogues are in {store}; run the "
            "same command to request the others."
        ) from None
    finally:
        if client is not None:
            client.close()
    return result


def facts_text(picture: Picture) -> str:
    """The facts on a picture for the prompt, one line each."""
    lines: list[str] = []
    if picture.caption:
        lines.append(picture.caption)
    for thing in picture.objects:
        known = (("count", thing.count), ("colour", thing.color), ("place", thing.place))
        details = ", ".join(f"{name}: {value}" for name, value in known if value is not None)
        lines.append(f"there is: {thing.name}" + (f" ({details})" if details else ""))
    if picture.text:
        lines.append("written in it: " + "; ".join(picture.text))
    lines += [
        f"{fact.ask} {fact.answer}" + (f" (source: {fact.source})" if fact.source else "") for fact in picture.facts
    ]
    if picture.absent:
        lines.append("not in it: " + ", ".join(picture.absent))
    return "\n".join(f"- {line}" for line in lines)


def picture_uri(picture: Picture) -> str:
    """The picture as a JPEG data URI, longest side at most `MAX_SIDE`, without EXIF."""
    pixels = open_picture(picture.path, picture.where)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _request_dialogue(
    client: "openai.OpenAI", teacher: Teacher, request: DialogueRequest, openings: set[str], result: TeacherResult
) -> Rounds | None:
    """One valid dialogue, or None after `teacher.attempts` invalid replies."""
    problem = ""
    uri = picture_uri(request.picture)
    for attempt in range(teacher.attempts):
        prompt = request.prompt + ("\n" + _prompts()["retry"].format(error=problem) if problem else "")
        seed = random.Random(f"{request.seed} {request.number} {attempt}").getrandbits(31)
        try:
            result.requests += 1
            return parse_rounds(request_reply(client, teacher, uri, prompt, seed), request.rounds, openings)
        except InvalidReply as error:
            problem = str(error)
    result.left_out += 1
    result.error = problem
    return None


def _key(request: DialogueRequest, model: str) -> str:
    key = [request.digest, request.prompt, request.number, model, request.seed]
    return hashlib.sha256(json.dumps(key).encode("ascii")).hexdigest()
