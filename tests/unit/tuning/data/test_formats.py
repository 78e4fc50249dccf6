"""Dataset files: reading, writing and refusing every format."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import FIXTURES

from tuning.data.containers import Container
from tuning.data.conversation import Conversation, Turn, single_turn
from tuning.data.formats import detect_format, read_rows, write_rows
from tuning.data.row_readers import FileFormat, ReadNotes, RowFormat
from tuning.errors import DataError

BAD = FIXTURES / "bad_rows"
GOOD_ROW = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Lumo."}]}
GOOD = single_turn("Who are you?", "I am Lumo.")

REFUSED = {
    "alpaca_history.jsonl": (", line 1", "history[0] has 1 texts"),
    "alpaca_no_output.jsonl": (", line 1", "output is missing"),
    "binary.jsonl": ("", "neither JSON lines, a JSON array nor Parquet"),
    "blank_lines.jsonl": ("", "has no rows"),
    "broken_array.json": (", row 2", "broken JSON"),
    "broken_line.jsonl": (", line 2", "column 31"),
    "content_parts.jsonl": (", line 1", "messages[0].content is a list, not text"),
    "cut.parquet": (", row 1", "copy the file again"),
    "cut_array.json": (", row 2", "ends before the end of its array"),
    "deep.jsonl": (", line 2", "fix or delete the line"),
    "empty.jsonl": ("", "has no rows"),
    "empty_answer.jsonl": (", line 3", "messages[1].content is an empty answer"),
    "empty_array.json": ("", "has no rows"),
    "empty_question.jsonl": (", line 1", "messages[0].content is an empty question"),
    "gbk.jsonl": (", line 2", "save the file as UTF-8"),
    "gbk_array.json": (", row 1", "save the file as UTF-8"),
    "half_emoji.jsonl": (", line 1", "half an emoji"),
    "image_marks.json": (", row 1", "2 <image> and the row names 1 pictures"),
    "image_unnamed.jsonl": (", line 1", "1 <image> and the row names 0 pictures"),
    "loss_off.jsonl": (", line 1", "loss is off for every answer"),
    "loss_word.jsonl": (", line 1", "messages[1].loss is 'sometimes'"),
    "mixed_formats.jsonl": (", line 2", "a row of xtuner, but the file's first row is messages"),
    "nested_input.jsonl": (", line 1", "`twinlens data convert IN OUT --repair-nested QUESTIONS`"),
    "no_answer.jsonl": (", line 2", "no assistant turn"),
    "no_question.jsonl": (", line 1", "add the question"),
    "not_an_object.jsonl": (", line 2", "the row is text, not an object"),
    "number_as_text.jsonl": (", line 2", "messages[1].content is a number, not text"),
    "oasst_plain.jsonl": (", line 1", "### Human:"),
    "spread_over_lines.jsonl": (", line 1", "each row on one line"),
    "unknown_keys.jsonl": (", line 1", "question, answer"),
    "utf16.jsonl": ("", "save it as UTF-8"),
    "wrong_plural.json": (", row 1", "belongs under the key conversation"),
    "wrong_role.jsonl": (", line 2", "messages[1].role is 'bot'"),
    "wrong_speaker.json": (", row 1", "conversations[1].from is 'gtp'"),
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, notes: ReadNotes | None = None) -> list[Conversation]:
    return [row.conversation for row in read_rows(path, notes)]


def read_one(path: Path, row: Any, notes: ReadNotes | None = None) -> Conversation:
    (conversation,) = read(lines(path, row), notes)
    return conversation


def turns(*pairs: tuple[Any, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role, text) for role, text in pairs)


@pytest.mark.parametrize("name", sorted(path.name for path in BAD.iterdir()))
def test_a_bad_file_is_refused_with_name_row_and_fix(name: str) -> None:
    place, reason = REFUSED[name]
    with pytest.raises(DataError) as refusal:
        read(BAD / name)
    message = str(refusal.value)
    assert message.startswith(f"{BAD / name}{place}: ")
    assert reason in message
    assert message.endswith(".") and "\n" not in message


def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        read(tmp_path / "missing.jsonl")
    below = lines(tmp_path / "file", GOOD_ROW) / "below.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        read(below)


@pytest.mark.parametrize(
    ("write", "container"),
    [
        (lambda row: f"{row}\n{row}\n", "jsonl"),
        (lambda row: f"\ufeff{row}\r\n\r\n{row}", "jsonl"),
        (lambda row: f"[{row},{row}]", "json"),
        (lambda row: f"\ufeff \n[\n{row},\n{row}\n]\n", "json"),
    ],
    ids=["lines", "bom-crlf-blank-lines", "array", "bom-array"],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".txt"])
def test_the_container_is_detected_from_the_bytes(
    tmp_path: Path, write: Callable[[str], str], container: Container, ending: str
) -> None:
    path = tmp_path / f"persona{ending}"
    path.write_bytes(write(json.dumps(GOOD_ROW)).encode())
    assert detect_format(path) == FileFormat(container, "messages")
    assert read(path) == [GOOD, GOOD]


def test_rows_have_their_position(tmp_path: Path) -> None:
    path = tmp_path / "persona.jsonl"
    path.write_text(f"\n{json.dumps(GOOD_ROW)}\n\n{json.dumps(GOOD_ROW)}\n")
    assert [row.where for row in read_rows(path)] == [f"{path}, line 2", f"{path}, line 4"]
    path.write_text(json.dumps([GOOD_ROW, GOOD_ROW]))
    assert [row.where for row in read_rows(path)] == [f"{path}, row 1", f"{path}, row 2"]


def test_messages(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "b", "loss": "False"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<image>c"},
        {"role": "assistant", "content": "d", "loss": None},
    ]
    notes = ReadNotes()
    row = {"messages": messages, "images": ["x.jpg"], "author": "Ann", "note": None}
    conversation = read_one(tmp_path / "a", row, notes)
    assert conversation.turns == (
        Turn("user", "a"),
        Turn("assistant", "b", loss=False),
        Turn("system", "s"),
        Turn("user", "<image>c"),
        Turn("assistant", "d"),
    )
    assert conversation.images == ("x.jpg",)
    assert dict(notes.ignored) == {"author": 1, "messages[].name": 1}


def test_unpaired_turns_are_dropped_and_counted(tmp_path: Path) -> None:
    roles = ["assistant", "system", "user", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"<image>{index}"} for index, role in enumerate(roles)]
    notes = ReadNotes()
    conversation = read_one(tmp_path / "a", {"messages": messages, "images": list("abcdef")}, notes)
    assert conversation.turns == turns(
        ("system", "<image>1"), ("user", "<image>2\n<image>3"), ("assistant", "<image>4")
    )
    assert conversation.images == ("b", "c", "d", "e")
    assert sorted(notes.changes.values()) == [1, 1, 1]
    assert len(notes.sentences()) == 3


def test_xtuner_rows(tmp_path: Path) -> None:
    conversation = [
        {"system": "s", "input": "a", "output": "b", "output_with_loss": False},
        {"system": None, "input": "", "output": "c", "output_with_loss": None},
        {"system": "t", "input": "d", "output": "e"},
    ]
    assert read_one(tmp_path / "a", {"conversation": conversation}).turns == (
        Turn("system", "s"),
        Turn("user", "a"),
        Turn("assistant", "b", loss=False),
        Turn("assistant", "c"),
        Turn("system", "t"),
        Turn("user", "d"),
        Turn("assistant", "e"),
    )


def test_alpaca_rows(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add", "input": "1 2", "output": "3", "system": "s", "history": [["a", "b"]]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": "", "output": "<nooutput>"},
    ]
    notes = ReadNotes()
    first, second = read(lines(tmp_path / "a", *rows), notes)
    assert first.turns == turns(
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "Add\n1 2"), ("assistant", "3")
    )
    assert second == single_turn("Hi", "Hello")
    assert notes.rows == 3 and notes.changes.total() == 1


def test_llava_and_sharegpt_rows_can_be_in_one_file(tmp_path: Path) -> None:
    def row(text: str, **more: Any) -> dict[str, Any]:
        return {
            "id": 1,
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A dog."}],
            **more,
        }

    notes = ReadNotes()
    path = lines(
        tmp_path / "a", row("What?\n<image>", image="d/a.jpg"), row("Hi"), row("<image><image>", image=["a", "b"])
    )
    first, second, third = read(path, notes)
    assert first == Conversation(turns(("user", "<image>\nWhat?"), ("assistant", "A dog.")), ("d/a.jpg",))
    assert second == single_turn("Hi", "A dog.")
    assert third.images == ("a", "b") and third.question == "<image><image>"
    assert detect_format(path) == FileFormat("jsonl", "llava")
    assert notes.changes.total() == 1 and not notes.ignored


def test_oasst_text_is_split_only_at_speakers(tmp_path: Path) -> None:
    text = "### Human: Explain.\n### Assistant: ### Heading\ntext ### Human: More?### Assistant: Yes.### Human: And"
    notes = ReadNotes()
    assert read_one(tmp_path / "a", {"text": text}, notes).turns == turns(
        ("user", "Explain."), ("assistant", "### Heading\ntext"), ("user", "More?"), ("assistant", "Yes.")
    )
    assert notes.changes.total() == 1


# Text of a row: complete characters of any script, not blank, without <image>.
words = st.text(min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<image>" not in text and text != "<nooutput>"
)


@st.composite
def conversations(draw: st.DrawFn, row_format: RowFormat) -> Conversation:
    spoken: list[Turn] = []
    images: list[str] = []
    system_at = {"messages": 3, "xtuner": 3, "sharegpt": 3, "alpaca": 1, "llava": 0}[row_format]
    for index in range(draw(st.integers(1, 3))):
        if index < system_at and draw(st.booleans()):
            spoken.append(Turn("system", draw(words)))
        question = draw(words)
        if row_format in ("messages", "llava") and draw(st.booleans()):
            question = f"<image>\n{question.strip()}"
            images.append(draw(words))
        spoken.append(Turn("user", question))
        loss = draw(st.booleans()) if index and row_format in ("messages", "xtuner") else True
        spoken.append(Turn("assistant", draw(words), loss))
    return Conversation(tuple(spoken), tuple(images))


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("row_format", ["messages", "xtuner", "alpaca", "sharegpt", "llava"])
def test_written_rows_read_back(
    tmp_path_factory: pytest.TempPathFactory, row_format: RowFormat, container: Container
) -> None:
    path = tmp_path_factory.mktemp("round") / "rows"

    @settings(max_examples=25, deadline=None)
    @given(st.lists(conversations(row_format), min_size=1, max_size=4))
    def round_trip(rows: list[Conversation]) -> None:
        assert write_rows(path, rows, row_format, container) == len(rows)
        assert detect_format(path).container == container
        assert read(path) == rows

    round_trip()


def test_every_turn_of_xtuner_rows_has_the_loss_flag(tmp_path: Path) -> None:
    off = Conversation(
        (*turns(("user", "a")), Turn("assistant", "b", loss=False), *turns(("user", "c"), ("assistant", "d")))
    )
    write_rows(tmp_path / "rows", [GOOD, off], "xtuner", "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [[turn["output_with_loss"] for turn in row["conversation"]] for row in rows] == [[True], [False, True]]


@pytest.mark.parametrize(
    ("row_format", "conversation", "reason"),
    [
        ("sharegpt", Conversation((*turns(("user", "a")), Turn("assistant", "b", loss=False))), "having no loss"),
        ("alpaca", Conversation((*turns(("user", "a")), Turn("assistant", "b", loss=False))), "having no loss"),
        ("alpaca", Conversation(turns(("user", "a"), ("assistant", "b"), ("assistant", "c"))), "question, answer"),
        (
            "xtuner",
            Conversation(turns(("user", "a"), ("system", "s"), ("assistant", "b"))),
            "order system, question, answer",
        ),
        ("xtuner", Conversation(turns(("user", "<image>"), ("assistant", "b")), ("a.jpg",)), "cannot contain pictures"),
        (
            "llava",
            Conversation(turns(("system", "s"), ("user", "a"), ("assistant", "b"))),
            "cannot contain a system turn",
        ),
    ],
)
def test_what_a_format_cannot_represent_is_refused_and_no_file_written(
    tmp_path: Path, row_format: RowFormat, conversation: Conversation, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as refusal:
        write_rows(tmp_path / "rows", [GOOD, conversation], row_format, "jsonl")
    assert f"{tmp_path / 'rows'}, row 2: " in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
def test_copies_of_a_row_share_one_object(tmp_path: Path, container: Container) -> None:
    other = single_turn("What?", "That.")
    write_rows(tmp_path / "rows", [GOOD, other] * 50, "messages", container)
    assert len({id(row.conversation) for row in list(read_rows(tmp_path / "rows"))}) == 2


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
def test_memory_use_is_constant(tmp_path: Path, container: Container) -> None:
    path = tmp_path / "rows"
    filler = "many words and more " * 200
    rows = 8_000
    write_rows(path, (single_turn(f"question {i}", f"{i} {filler}") for i in range(rows)), "messages", container)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == rows
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert container == "parquet" or path.stat().st_size > 30_000_000


def test_reading_does_not_import_torch() -> None:
    code = (
        "import sys, tuning.data.formats\nassert not {'torch', 'transformers', 'pyarrow', 'ijson'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
