"""Row readers: rows of each known format, checked and turned into conversations."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tuning.data.containers import Container, RowError
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

_MAIN_KEY: dict[RowFormat, str] = {
    "messages": "messages",
    "xtuner": "conversation",
    "alpaca": "instruction",
    "sharegpt": "conversations",
    "llava": "conversations",
    "oasst": "text",
}
_OTHER_KEYS: dict[RowFormat, frozenset[str]] = {
    "messages": frozenset({"images", "image"}),
    "xtuner": frozenset(),
    "alpaca": frozenset({"input", "output", "system", "history"}),
    "sharegpt": frozenset({"images", "image", "id", "system"}),
    "llava": frozenset({"images", "image", "id", "system"}),
    "oasst": frozenset(),
}
_OASST_SPEAKER = re.compile(r"### ?(Human|Assistant):")

_FieldTurn = tuple[Turn, str]  # a turn, and the field of the row that its text is in, for messages


@dataclass(frozen=True, slots=True)
class FileFormat:
    """The format of a dataset file: its container, and the format of its rows."""

    container: Container
    schema: RowFormat


@dataclass(slots=True)
class ReadNotes:
    """What reading ignored or changed, counted while rows are read.

    Args:
        file_format: the format of the file.
        rows: rows read so far.
        ignored: number of rows by ignored key, such as `author` or `messages[].name`.
        changes: how often something was left out or changed.
    """

    file_format: FileFormat | None = None
    rows: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    changes: Counter[RowChange] = field(default_factory=Counter)

    def add(self, other: "ReadNotes") -> None:
        """Add the counts of another reading."""
        self.rows += other.rows
        self.ignored += other.ignored  # leaves out keys whose count is zero
        self.changes += other.changes

    def sentences(self) -> list[str]:
        """One line for each kind of note."""
        ignored = [f"ignored key {key!r} ({count} rows)" for key, count in sorted(self.ignored.items())]
        return ignored + [f"{change} ({count} times)" for change, count in sorted(self.changes.items())]


def detect_row_format(row: Any) -> RowFormat | None:
    """The row format that a row's keys belong to, or None."""
    if not isinstance(row, dict):
        return None
    present = {key for key, value in row.items() if value is not None}
    for schema in ROW_FORMATS:
        if _MAIN_KEY[schema] in present:
            return "llava" if schema == "sharegpt" and present & {"image", "images"} else schema
    return None


def read_row(row: Any, schema: RowFormat, notes: ReadNotes) -> Conversation | None:
    """Turn one row into a conversation; None where the row itself says that it has no answer.

    Args:
        schema: row format of the file; every row must have it.
        notes: counts the row, its ignored keys and its changes.

    Raises:
        RowError: the field that is wrong, and the fix.
    """
    _check_schema(row, schema)
    notes.rows += 1
    known = {_MAIN_KEY[schema], *_OTHER_KEYS[schema]}
    ignored = {key for key, value in row.items() if value is not None and key not in known}
    match schema:
        case "messages":
            turns = list(_messages(row["messages"], ignored))
        case "xtuner":
            turns = list(_xtuner(row["conversation"], ignored))
        case "alpaca" if row.get("output") == "<nooutput>":
            turns = None
            notes.changes["rows that say <nooutput> left out"] += 1
        case "alpaca":
            turns = list(_alpaca(row))
        case "sharegpt" | "llava":
            turns = list(_sharegpt(row, ignored, notes.changes))
        case "oasst":
            turns = list(_oasst(_text(row["text"], "text")))
    notes.ignored.update(ignored)
    if turns is None:
        return None
    images = _images(row) if "image" in _OTHER_KEYS[schema] else ()
    return _build_conversation(turns, images, notes.changes)


def _check_schema(row: Any, schema: RowFormat) -> None:
    if not isinstance(row, dict):
        raise RowError(
            f"the row is {_json_type(row)}, not an object with keys; write it as one of the known row formats."
        )
    detected = detect_row_format(row)
    if detected == schema or {detected, schema} == {"sharegpt", "llava"}:
        return
    if detected is None:
        raise RowError(f"the row has no {_MAIN_KEY[schema]}, which the file's first row has; add it or delete the row.")
    raise RowError(f"this is a row of {detected}, but the file's first row is one of {schema}; keep one format a file.")


def _turn(role: Role, value: Any, field: str, loss: bool = True) -> _FieldTurn:
    return Turn(role, _text(value, field), loss or role != "assistant"), field


def _messages(messages: Any, ignored: set[str]) -> Iterator[_FieldTurn]:
    for index, message in enumerate(_objects(messages, "messages")):
        field = f"messages[{index}]"
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{field}.role is {role!r}; the roles are system, user and assistant.")
        yield _turn(role, message.get("content"), f"{field}.content", _loss(message.get("loss"), f"{field}.loss"))
        ignored.update(_others(message, {"role", "content", "loss"}, "messages[]"))


def _xtuner(conversation: Any, ignored: set[str]) -> Iterator[_FieldTurn]:
    for index, turn in enumerate(_objects(conversation, "conversation")):
        field = f"conversation[{index}]"
        if isinstance(turn.get("input"), dict):
            raise RowError(
                f"{field}.input is a conversation instead of the question's text (the tool that wrote the file lost "
                "the questions); `twinlens data convert IN OUT --repair-nested QUESTIONS` puts them back from a list."
            )
        if turn.get("system") is not None:
            yield _turn("system", turn["system"], f"{field}.system")
        # XTuner writes an empty input where there is no question: pretraining text, or a second answer in a row.
        question = _turn("user", turn.get("input"), f"{field}.input")
        if question[0].content.strip():
            yield question
        loss = _loss(turn.get("output_with_loss"), f"{field}.output_with_loss")
        yield _turn("assistant", turn.get("output"), f"{field}.output", loss)
        ignored.update(_others(turn, {"system", "input", "output", "output_with_loss"}, "conversation[]"))


def _alpaca(row: dict[str, Any]) -> Iterator[_FieldTurn]:
    if row.get("system") is not None:
        yield _turn("system", row["system"], "system")
    history = row.get("history")
    for index, pair in enumerate([] if history is None else _list(history, "history")):
        field = f"history[{index}]"
        if len(_list(pair, field)) != 2:
            raise RowError(f"{field} has {len(pair)} texts; write a question and its answer.")
        yield _turn("user", pair[0], f"{field}[0]")
        yield _turn("assistant", pair[1], f"{field}[1]")
    question = _text(row["instruction"], "instruction")
    if row.get("input") is not None and _text(row["input"], "input"):
        question = f"{question}\n{row['input']}"
    yield _turn("user", question, "instruction")
    yield _turn("assistant", row.get("output"), "output")


def _sharegpt(row: dict[str, Any], ignored: set[str], changes: Counter[RowChange]) -> Iterator[_FieldTurn]:
    if row.get("system") is not None:
        yield _turn("system", row["system"], "system")
    for index, turn in enumerate(_objects(row["conversations"], "conversations")):
        field = f"conversations[{index}]"
        speaker = turn.get("from")
        role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None and "input" in turn:
            raise RowError(f"{field} has an input, which belongs under the key conversation; rename the key.")
        if role is None:
            raise RowError(f"{field}.from is {speaker!r}; write human, gpt or system.")
        text = _text(turn.get("value"), f"{field}.value")
        if role == "user" and text.count(DEFAULT_IMAGE_TOKEN) == 1 and not text.startswith(f"{DEFAULT_IMAGE_TOKEN}\n"):
            fronted = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
            changes["<image> moved to the front of its turn, as LLaVA trains"] += fronted != text
            text = fronted
        yield _turn(role, text, f"{field}.value")
        ignored.update(_others(turn, {"from", "value"}, "conversations[]"))


def _oasst(text: str) -> Iterator[_FieldTurn]:
    before, *pieces = _OASST_SPEAKER.split(text)
    if not pieces:
        raise RowError("text has no `### Human:` in it, so it is no conversation; add questions and answers.")
    if before.strip():
        raise RowError("text starts before the first `### Human:`; delete the text before it.")
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        yield _turn("user" if speaker == "Human" else "assistant", content.strip(), f"text (### {speaker})")


def _images(row: dict[str, Any]) -> tuple[str, ...]:
    value, key = (row["images"], "images") if row.get("images") is not None else (row.get("image"), "image")
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    for path in paths:
        if not _text(path, key).strip():
            raise RowError(f"{key} names a picture without a path; write the path, relative to the file.")
    return tuple(paths)


def _count_marks(turns: list[_FieldTurn]) -> int:
    return sum(turn.content.count(DEFAULT_IMAGE_TOKEN) for turn, _ in turns)


def _build_conversation(turns: list[_FieldTurn], images: tuple[str, ...], changes: Counter[RowChange]) -> Conversation:
    """Check what every conversation must have, and leave out turns that belong to no answer."""
    if (marks := _count_marks(turns)) != len(images):
        raise RowError(
            f"the text has {marks} {DEFAULT_IMAGE_TOKEN} and the row names {len(images)} pictures; write one mark a "
            "picture."
        )
    turns = [(turn, field) for turn, field in turns if turn.role != "system" or turn.content.strip()]
    turns, images = _drop_unanswered(turns, images, changes)
    merged: list[Turn] = []
    for turn, key in turns:
        if not turn.content.strip():
            kind = "answer" if turn.role == "assistant" else "question"
            raise RowError(f"{key} is an empty {kind}; write the {kind} or delete the row.")
        if merged and merged[-1].role == turn.role != "assistant":
            merged[-1] = Turn(turn.role, f"{merged[-1].content}\n{turn.content}")
            changes["turns of one role in a row joined by a newline"] += 1
        else:
            merged.append(turn)
    if not any(turn.loss for turn in merged if turn.role == "assistant"):
        raise RowError("loss is off on every answer, so there is nothing to learn; turn one on or delete the row.")
    return Conversation(tuple(merged), images)


def _drop_unanswered(
    turns: list[_FieldTurn], images: tuple[str, ...], changes: Counter[RowChange]
) -> tuple[list[_FieldTurn], tuple[str, ...]]:
    """Leave out answers without a question and questions without an answer, with their pictures."""
    roles = [turn.role for turn, _ in turns]
    if "assistant" not in roles:
        raise RowError("no assistant turn, so there is nothing to learn; add the answer or delete the row.")
    first = roles.index("user") if "user" in roles else len(roles)
    end = len(roles) - roles[::-1].index("assistant")
    if first >= end:
        raise RowError("no question before its answer (pretraining text?); add the question or delete the row.")
    unasked = [each for each in turns[:first] if each[0].role == "assistant"]
    changes["answers before the first question left out"] += len(unasked)
    changes["turns behind the last answer left out"] += len(turns) - end
    remaining = [each for each in turns[:first] if each[0].role == "system"] + turns[first:end]
    skipped = _count_marks(unasked)
    return remaining, images[skipped : skipped + _count_marks(remaining)]


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
