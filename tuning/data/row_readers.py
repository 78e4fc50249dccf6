"""Row readers: check rows of each known format and convert them to conversations."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tuning.data.containers import Container, RowError
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, ROLES, Conversation, Role, Turn

RowFormat = Literal["messages", "xtuner", "alpaca", "sharegpt", "llava", "oasst"]

_KEYS: dict[RowFormat, tuple[str, ...]] = {
    "messages": ("messages", "images", "image"),
    "xtuner": ("conversation",),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "images", "image", "id", "system"),
    "llava": ("conversations", "images", "image", "id", "system"),
    "oasst": ("text",),
}
"""Keys of a row in each format. The first key identifies the format."""

_SHAREGPT_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}
_OASST_SPEAKER = re.compile(r"### ?(Human|Assistant):")

_FieldTurn = tuple[Turn, str]  # a turn, and the field of the row that contains its text, for messages


@dataclass(frozen=True, slots=True)
class FileFormat:
    """The format of a dataset file: its container and its row format."""

    container: Container
    row_format: RowFormat


@dataclass(slots=True)
class ReadNotes:
    """Counts of what was ignored or changed while reading.

    Args:
        file_format: the format of the file.
        rows: number of rows read.
        ignored: number of rows with an ignored key, by key, such as `author` or `messages[].name`.
        changes: number of omissions and changes, by description.
    """

    file_format: FileFormat | None = None
    rows: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "ReadNotes") -> None:
        """Add the counts of `other`."""
        self.rows += other.rows
        self.ignored += other.ignored
        self.changes += other.changes  # removes keys with count 0

    def sentences(self) -> list[str]:
        """One line for each kind of note."""
        ignored = [f"ignored key {key!r} ({count} rows)" for key, count in sorted(self.ignored.items())]
        return ignored + [f"{change} ({count} times)" for change, count in sorted(self.changes.items())]


def detect_row_format(row: Any) -> RowFormat | None:
    """Detect the row format from the keys of a row; None if it is not a known format."""
    if not isinstance(row, dict):
        return None
    present = {key for key, value in row.items() if value is not None}
    for row_format, (main_key, *_) in _KEYS.items():
        if main_key in present:
            return "llava" if row_format == "sharegpt" and present & {"image", "images"} else row_format
    return None


def read_row(row: Any, row_format: RowFormat) -> tuple[Conversation | None, ReadNotes]:
    """Convert one row to a conversation; None if the row is marked as having no answer.

    Args:
        row_format: row format of the file; every row must have it.

    Raises:
        RowError: the field that is wrong, and the fix.
    """
    _check_row_format(row, row_format)
    notes = ReadNotes(rows=1)
    _note_unknown_keys(row, _KEYS[row_format], "", notes)
    match row_format:
        case "messages":
            turns = _messages(row, notes)
        case "xtuner":
            turns = _xtuner(row, notes)
        case "alpaca":
            if row.get("output") == "<nooutput>":
                notes.changes["rows that say <nooutput> left out"] += 1
                return None, notes
            turns = _alpaca(row)
        case "sharegpt" | "llava":
            turns = _sharegpt(row, notes)
        case "oasst":
            turns = _oasst(row)
    images = _images(row) if "image" in _KEYS[row_format] else ()
    return _build_conversation(list(turns), images, notes.changes), notes


def _check_row_format(row: Any, row_format: RowFormat) -> None:
    if not isinstance(row, dict):
        raise RowError(f"the row is {_json_type(row)}, not an object with keys; write it in a known row format.")
    detected = detect_row_format(row)
    if detected == row_format or {detected, row_format} == {"sharegpt", "llava"}:
        return
    if detected is None:
        raise RowError(f"the row has no {_KEYS[row_format][0]}, unlike the file's first row; add it or delete the row.")
    raise RowError(f"this is a row of {detected}, but the file's first row is {row_format}; use one format per file.")


def _turn(role: Role, value: Any, field: str, loss: bool = True) -> _FieldTurn:
    return Turn(role, _text(value, field), loss or role != "assistant"), field


def _messages(row: dict[str, Any], notes: ReadNotes) -> Iterator[_FieldTurn]:
    for name, message in _objects(row, "messages", ("role", "content", "loss"), notes):
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{name}.role is {role!r}; the roles are system, user and assistant.")
        yield _turn(role, message.get("content"), f"{name}.content", _loss(message.get("loss"), f"{name}.loss"))


def _xtuner(row: dict[str, Any], notes: ReadNotes) -> Iterator[_FieldTurn]:
    for name, turn in _objects(row, "conversation", ("system", "input", "output", "output_with_loss"), notes):
        if isinstance(turn.get("input"), dict):
            raise RowError(
                f"{name}.input is a conversation, not the text of the question (the program that wrote the file lost "
                "the questions); `twinlens data convert IN OUT --repair-nested QUESTIONS` restores them from a list."
            )
        if turn.get("system") is not None:
            yield _turn("system", turn["system"], f"{name}.system")
        # XTuner writes an empty input if there is no question: in pretraining text, or before a second answer.
        question = _turn("user", turn.get("input"), f"{name}.input")
        if question[0].content.strip():
            yield question
        loss = _loss(turn.get("output_with_loss"), f"{name}.output_with_loss")
        yield _turn("assistant", turn.get("output"), f"{name}.output", loss)


def _alpaca(row: dict[str, Any]) -> Iterator[_FieldTurn]:
    if row.get("system") is not None:
        yield _turn("system", row["system"], "system")
    history = row.get("history")
    for index, pair in enumerate([] if history is None else _list(history, "history")):
        name = f"history[{index}]"
        if len(_list(pair, name)) != 2:
            raise RowError(f"{name} has {len(pair)} texts; write a question and its answer.")
        yield _turn("user", pair[0], f"{name}[0]")
        yield _turn("assistant", pair[1], f"{name}[1]")
    question = _text(row["instruction"], "instruction")
    if row.get("input") is not None and _text(row["input"], "input"):
        question = f"{question}\n{row['input']}"
    yield _turn("user", question, "instruction")
    yield _turn("assistant", row.get("output"), "output")


def _sharegpt(row: dict[str, Any], notes: ReadNotes) -> Iterator[_FieldTurn]:
    if row.get("system") is not None:
        yield _turn("system", row["system"], "system")
    for name, turn in _objects(row, "conversations", ("from", "value"), notes):
        speaker = turn.get("from")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None and "input" in turn:
            raise RowError(f"{name} has an input, which belongs under the key conversation; rename the key.")
        if role is None:
            raise RowError(f"{name}.from is {speaker!r}; write human, gpt or system.")
        text = _text(turn.get("value"), f"{name}.value")
        if role == "user" and text.count(DEFAULT_IMAGE_TOKEN) == 1 and not text.startswith(f"{DEFAULT_IMAGE_TOKEN}\n"):
            moved = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
            notes.changes["<image> moved to the front of its turn, as LLaVA trains"] += moved != text
            text = moved
        yield _turn(role, text, f"{name}.value")


def _oasst(row: dict[str, Any]) -> Iterator[_FieldTurn]:
    before, *pieces = _OASST_SPEAKER.split(_text(row["text"], "text"))
    if not pieces:
        raise RowError("text contains no `### Human:`, so it is not a conversation; add questions and answers.")
    if before.strip():
        raise RowError("text starts before the first `### Human:`; delete the text before it.")
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        yield _turn("user" if speaker == "Human" else "assistant", content.strip(), f"text (### {speaker})")


def _images(row: dict[str, Any]) -> tuple[str, ...]:
    key = "images" if row.get("images") is not None else "image"
    value = row.get(key)
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    if not all(_text(path, key).strip() for path in paths):
        raise RowError(f"{key} contains an empty path; write the path of the picture, relative to the file.")
    return tuple(paths)


def _count_image_tokens(turns: list[_FieldTurn]) -> int:
    return sum(turn.content.count(DEFAULT_IMAGE_TOKEN) for turn, _ in turns)


def _build_conversation(turns: list[_FieldTurn], images: tuple[str, ...], changes: Counter[str]) -> Conversation:
    """Check the turns and join them to a conversation, without turns that belong to no answer."""
    if (tokens := _count_image_tokens(turns)) != len(images):
        raise RowError(
            f"the text has {tokens} {DEFAULT_IMAGE_TOKEN} and the row names {len(images)} pictures; write one "
            f"{DEFAULT_IMAGE_TOKEN} per picture."
        )
    turns = [(turn, name) for turn, name in turns if turn.role != "system" or turn.content.strip()]
    turns, images = _drop_unpaired(turns, images, changes)
    merged: list[Turn] = []
    for turn, name in turns:
        if not turn.content.strip():
            kind = "answer" if turn.role == "assistant" else "question"
            raise RowError(f"{name} is an empty {kind}; write the {kind} or delete the row.")
        if merged and merged[-1].role == turn.role != "assistant":
            merged[-1] = Turn(turn.role, f"{merged[-1].content}\n{turn.content}")
            changes["turns of one role in a row joined by a newline"] += 1
        else:
            merged.append(turn)
    if not any(turn.loss for turn in merged if turn.role == "assistant"):
        raise RowError("loss is off for every answer, so the row trains nothing; turn one on or delete the row.")
    return Conversation(tuple(merged), images)


def _drop_unpaired(
    turns: list[_FieldTurn], images: tuple[str, ...], changes: Counter[str]
) -> tuple[list[_FieldTurn], tuple[str, ...]]:
    """Drop answers without a question and questions without an answer, with their pictures."""
    roles = [turn.role for turn, _ in turns]
    if "assistant" not in roles:
        raise RowError("no assistant turn, so the row trains nothing; add the answer or delete the row.")
    first = roles.index("user") if "user" in roles else len(roles)
    end = len(roles) - roles[::-1].index("assistant")
    if first >= end:
        raise RowError("no question before its answer (pretraining text?); add the question or delete the row.")
    unasked = [each for each in turns[:first] if each[0].role == "assistant"]
    changes["answers before the first question left out"] += len(unasked)
    changes["turns behind the last answer left out"] += len(turns) - end
    remaining = [each for each in turns[:first] if each[0].role == "system"] + turns[first:end]
    skipped = _count_image_tokens(unasked)
    return remaining, images[skipped : skipped + _count_image_tokens(remaining)]


def _loss(value: Any, field: str) -> bool:
    """A missing loss flag is true: Arrow fills missing keys with None, which must not turn the loss off."""
    if value is None or isinstance(value, bool):
        return value is not False
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise RowError(f"{field} is {value!r}; write true or false, or omit it for true.")


def _text(value: Any, field: str) -> str:
    if value is None:
        raise RowError(f"{field} is missing; add its text or delete the row.")
    if not isinstance(value, str):
        raise RowError(f"{field} is {_json_type(value)}, not text; write it as one string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{field} has half an emoji at character {error.start + 1}; complete it.") from error
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{field} is {_json_type(value)}, not a list; write it in [ ].")
    return value


def _objects(
    row: dict[str, Any], key: str, known: tuple[str, ...], notes: ReadNotes
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in the list `row[key]`, each with the name of its field; counts their unknown keys."""
    turns = _list(row[key], key)
    if not turns:
        raise RowError(f"{key} is an empty list; add the turns or delete the row.")
    for index, turn in enumerate(turns):
        name = f"{key}[{index}]"
        if not isinstance(turn, dict):
            raise RowError(f"{name} is {_json_type(turn)}, not an object with keys; write one object per turn.")
        _note_unknown_keys(turn, known, f"{key}[].", notes)
        yield name, turn


def _note_unknown_keys(values: dict[str, Any], known: tuple[str, ...], prefix: str, row_notes: ReadNotes) -> None:
    for key, value in values.items():
        if value is not None and key not in known:
            row_notes.ignored[f"{prefix}{key}"] = 1  # once per row, also if several of its turns have the key


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
