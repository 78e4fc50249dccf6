"""Rows as other tools write them, each turned into a conversation or refused with what to mend."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tuning.data.containers import RowError
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, ROLES, Conversation, Role, Turn

RowFormat = Literal["messages", "xtuner", "alpaca", "sharegpt", "llava", "oasst"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)

RowChange = Literal[
    "answers before the first question left out",
    "turns behind the last answer left out",
    "turns of one role in a row joined by a newline",
    "<image> moved to the front of its turn, as LLaVA trains",
    "rows that say <nooutput> left out",
]

SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_KNOWN_KEYS: dict[RowFormat, frozenset[str]] = {
    "messages": frozenset({"messages", "images", "image"}),
    "xtuner": frozenset({"conversation"}),
    "alpaca": frozenset({"instruction", "input", "output", "system", "history"}),
    "sharegpt": frozenset({"conversations", "images", "image", "id", "system"}),
    "llava": frozenset({"conversations", "images", "image", "id", "system"}),
    "oasst": frozenset({"text"}),
}
_OASST_SPEAKER = re.compile(r"### ?(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """What became of one row.

    Args:
        conversation: None where the row itself says that it has no answer.
        ignored: keys that were not used, such as `author` or `messages[].name`.
        changes: what was left out or changed, once each time it happened.
    """

    conversation: Conversation | None
    ignored: tuple[str, ...]
    changes: tuple[RowChange, ...]


@dataclass(frozen=True, slots=True)
class _RawTurn:
    """A turn as the row has it, with the place its text stands at."""

    role: Role
    text: str
    loss: bool
    field: str


def detect_row_format(row: Any) -> RowFormat | None:
    """The schema a row's keys belong to, or None."""
    if not isinstance(row, dict):
        return None
    present = {key for key, value in row.items() if value is not None}
    if "messages" in present:
        return "messages"
    if "conversation" in present:
        return "xtuner"
    if "conversations" in present:
        return "llava" if present & {"image", "images"} else "sharegpt"
    if "instruction" in present:
        return "alpaca"
    return "oasst" if "text" in present else None


def read_row(row: Any, schema: RowFormat) -> ParsedRow:
    """Turn one row into a conversation.

    Args:
        schema: of the file; every row of it must fit.

    Raises:
        RowError: the field that is wrong, and what to do about it.
    """
    _check_schema(row, schema)
    ignored = {key for key, value in row.items() if value is not None} - _KNOWN_KEYS[schema]
    changes: list[RowChange] = []
    match schema:
        case "messages":
            spoken = _messages(row["messages"], ignored)
        case "xtuner":
            spoken = _xtuner(row["conversation"], ignored)
        case "alpaca":
            if row.get("output") == "<nooutput>":
                return ParsedRow(None, tuple(sorted(ignored)), ("rows that say <nooutput> left out",))
            spoken = _alpaca(row)
        case "sharegpt" | "llava":
            spoken = _sharegpt(row, ignored, changes)
        case "oasst":
            spoken = _oasst(_text(row["text"], "text"))
    images = _images(row) if "image" in _KNOWN_KEYS[schema] else ()
    return ParsedRow(_build_conversation(list(spoken), images, changes), tuple(sorted(ignored)), tuple(changes))


def _check_schema(row: Any, schema: RowFormat) -> None:
    if not isinstance(row, dict):
        raise RowError(
            f"the row is {_json_type(row)}, not an object with keys; write it as one of the known row formats."
        )
    found = detect_row_format(row)
    if found == schema or {found, schema} == {"sharegpt", "llava"}:
        return
    if found is None:
        raise RowError(f"the row has no {_MAIN_KEY[schema]}, which the file's first row has; add it or delete the row.")
    raise RowError(f"this is a row of {found}, but the file's first row is one of {schema}; keep one format a file.")


_MAIN_KEY: dict[RowFormat, str] = {
    "messages": "messages",
    "xtuner": "conversation",
    "alpaca": "instruction",
    "sharegpt": "conversations",
    "llava": "conversations",
    "oasst": "text",
}


def _messages(messages: Any, ignored: set[str]) -> Iterator[_RawTurn]:
    for index, message in enumerate(_objects(messages, "messages")):
        field = f"messages[{index}]"
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{field}.role is {role!r}; the roles are system, user and assistant.")
        loss = _loss(message.get("loss"), f"{field}.loss")
        yield _RawTurn(role, _text(message.get("content"), f"{field}.content"), loss, f"{field}.content")
        ignored.update(_others(message, {"role", "content", "loss"}, "messages[]"))


def _xtuner(conversation: Any, ignored: set[str]) -> Iterator[_RawTurn]:
    for index, turn in enumerate(_objects(conversation, "conversation")):
        field = f"conversation[{index}]"
        if isinstance(turn.get("input"), dict):
            raise RowError(
                f"{field}.input is a whole conversation where the question's text belongs (whatever made the file lost "
                "the questions); `twinlens data convert IN OUT --repair-nested QUESTIONS` puts them back from a list."
            )
        if turn.get("system") is not None:
            yield _RawTurn("system", _text(turn["system"], f"{field}.system"), True, f"{field}.system")
        # XTuner writes an empty input where nobody asks: pretraining text, or one more answer to the question before.
        question = _text(turn.get("input"), f"{field}.input")
        if question.strip():
            yield _RawTurn("user", question, True, f"{field}.input")
        loss = _loss(turn.get("output_with_loss"), f"{field}.output_with_loss")
        yield _RawTurn("assistant", _text(turn.get("output"), f"{field}.output"), loss, f"{field}.output")
        ignored.update(_others(turn, {"system", "input", "output", "output_with_loss"}, "conversation[]"))


def _alpaca(row: dict[str, Any]) -> Iterator[_RawTurn]:
    if row.get("system") is not None:
        yield _RawTurn("system", _text(row["system"], "system"), True, "system")
    history = row.get("history")
    for index, pair in enumerate([] if history is None else _list(history, "history")):
        field = f"history[{index}]"
        if len(_list(pair, field)) != 2:
            raise RowError(f"{field} has {len(pair)} texts; write a question and its answer.")
        yield _RawTurn("user", _text(pair[0], f"{field}[0]"), True, f"{field}[0]")
        yield _RawTurn("assistant", _text(pair[1], f"{field}[1]"), True, f"{field}[1]")
    question = _text(row["instruction"], "instruction")
    if row.get("input") is not None and _text(row["input"], "input"):
        question = f"{question}\n{row['input']}"
    yield _RawTurn("user", question, True, "instruction")
    yield _RawTurn("assistant", _text(row.get("output"), "output"), True, "output")


def _sharegpt(row: dict[str, Any], ignored: set[str], changes: list[RowChange]) -> Iterator[_RawTurn]:
    if row.get("system") is not None:
        yield _RawTurn("system", _text(row["system"], "system"), True, "system")
    for index, turn in enumerate(_objects(row["conversations"], "conversations")):
        field = f"conversations[{index}]"
        speaker = turn.get("from")
        role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None and "input" in turn:
            raise RowError(f"{field} has an input, which belongs under the key conversation; take the s off.")
        if role is None:
            raise RowError(f"{field}.from is {speaker!r}; write human, gpt or system.")
        text = _text(turn.get("value"), f"{field}.value")
        if role == "user" and text.count(DEFAULT_IMAGE_TOKEN) == 1 and not text.startswith(f"{DEFAULT_IMAGE_TOKEN}\n"):
            fronted = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
            if fronted != text:
                changes.append("<image> moved to the front of its turn, as LLaVA trains")
            text = fronted
        yield _RawTurn(role, text, True, f"{field}.value")
        ignored.update(_others(turn, {"from", "value"}, "conversations[]"))


def _oasst(text: str) -> Iterator[_RawTurn]:
    before, *pieces = _OASST_SPEAKER.split(text)
    if not pieces:
        raise RowError("text has no `### Human:` in it, so it is no conversation; give it questions and answers.")
    if before.strip():
        raise RowError("text starts before the first `### Human:`; delete what stands there.")
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        yield _RawTurn(role, said.strip(), True, f"text (### {speaker})")


def _images(row: dict[str, Any]) -> tuple[str, ...]:
    value, key = (row["images"], "images") if row.get("images") is not None else (row.get("image"), "image")
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    for path in paths:
        if not _text(path, key).strip():
            raise RowError(f"{key} names a picture without a path; write the path, relative to the file.")
    return tuple(paths)


def _build_conversation(spoken: list[_RawTurn], images: tuple[str, ...], changes: list[RowChange]) -> Conversation:
    """Check what every conversation must have, and trim what no answer belongs to."""
    marks = sum(turn.text.count(DEFAULT_IMAGE_TOKEN) for turn in spoken)
    if marks != len(images):
        raise RowError(
            f"the text has {marks} {DEFAULT_IMAGE_TOKEN} and the row names {len(images)} pictures; write one mark a "
            "picture."
        )
    spoken = [turn for turn in spoken if turn.role != "system" or turn.text.strip()]
    if not any(turn.role == "assistant" for turn in spoken):
        raise RowError("no assistant turn, so there is nothing to learn; add the answer or delete the row.")
    kept, images = _drop_unanswered(spoken, images, changes)
    for turn in kept:
        if not turn.text.strip():
            what = "answer" if turn.role == "assistant" else "question"
            raise RowError(f"{turn.field} is an empty {what}; write the {what} or delete the row.")
    if not any(turn.loss for turn in kept if turn.role == "assistant"):
        raise RowError("loss is off on every answer, so there is nothing to learn; turn one on or delete the row.")
    turns: list[Turn] = []
    for turn in kept:
        if turns and turns[-1].role == turn.role != "assistant":
            turns[-1] = Turn(turn.role, f"{turns[-1].content}\n{turn.text}")
            changes.append("turns of one role in a row joined by a newline")
        else:
            turns.append(Turn(turn.role, turn.text, turn.loss or turn.role != "assistant"))
    return Conversation(tuple(turns), images)


def _drop_unanswered(
    spoken: list[_RawTurn], images: tuple[str, ...], changes: list[RowChange]
) -> tuple[list[_RawTurn], tuple[str, ...]]:
    """Leave out answers that nobody asked for and questions that nobody answers, with their pictures."""
    asked = next((index for index, turn in enumerate(spoken) if turn.role == "user"), len(spoken))
    last = max(index for index, turn in enumerate(spoken) if turn.role == "assistant")
    if asked > last:
        raise RowError("no question before its answer (pretraining text?); add the question or delete the row.")
    unasked = [turn for turn in spoken[:asked] if turn.role == "assistant"]
    changes.extend("answers before the first question left out" for _ in unasked)
    changes.extend("turns behind the last answer left out" for _ in spoken[last + 1 :])
    first = sum(turn.text.count(DEFAULT_IMAGE_TOKEN) for turn in unasked)
    kept = [turn for turn in spoken[:asked] if turn.role == "system"] + spoken[asked : last + 1]
    return kept, images[first : first + sum(turn.text.count(DEFAULT_IMAGE_TOKEN) for turn in kept)]


def _loss(value: Any, field: str) -> bool:
    """A missing flag means on: Arrow fills missing keys with None, which must not turn the loss off."""
    if value is None or isinstance(value, bool):
        return value is not False
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise RowError(f"{field} is {value!r}; write true or false, or leave it out for true.")


def _text(value: Any, field: str) -> str:
    if value is None:
        raise RowError(f"{field} is missing; add its text or delete the row.")
    if not isinstance(value, str):
        raise RowError(f"{field} is {_json_type(value)}, not text; write it as one string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{field} has half an emoji at character {error.start + 1}; write it whole.") from error
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{field} is {_json_type(value)}, not a list; write it in [ ].")
    return value


def _objects(value: Any, field: str) -> list[dict[str, Any]]:
    turns = _list(value, field)
    if not turns:
        raise RowError(f"{field} is an empty list; add the turns or delete the row.")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowError(f"{field}[{index}] is {_json_type(turn)}, not an object with keys; write one object a turn.")
    return turns


def _others(turn: dict[str, Any], known: set[str], prefix: str) -> set[str]:
    return {f"{prefix}.{key}" for key, value in turn.items() if value is not None and key not in known}


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
