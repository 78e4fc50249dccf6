"""Row writers: convert conversations to rows of each format; refuse what a format cannot represent."""

from collections.abc import Iterator
from typing import Any

from tuning.data.containers import RowError
from tuning.data.conversation import Conversation, to_row
from tuning.data.row_readers import RowFormat

COLUMNS: dict[RowFormat, dict[str, Any]] = {
    "messages": {"messages": [{"role": str, "content": str, "loss": bool}], "images": [str]},
    "xtuner": {"conversation": [{"system": str, "input": str, "output": str, "output_with_loss": bool}]},
    "alpaca": {"instruction": str, "input": str, "output": str, "system": str, "history": [[str]]},
    "sharegpt": {"conversations": [{"from": str, "value": str}]},
    "llava": {"id": str, "image": [str], "conversations": [{"from": str, "value": str}]},
}
"""Keys of a written row and their types, as in `write_raw_rows`."""


def write_row(conversation: Conversation, row_format: RowFormat, number: int) -> dict[str, Any]:
    """Convert one conversation to a row.

    Args:
        number: row number; the id of a LLaVA row.

    Raises:
        RowError: the format cannot represent the conversation.
    """
    if conversation.images and row_format not in ("messages", "llava"):
        raise RowError(f"{row_format} rows cannot contain pictures; write messages or llava.")
    if row_format not in ("messages", "xtuner") and not all(turn.loss for turn in conversation.turns):
        raise RowError(f"{row_format} rows cannot mark an answer as having no loss; write messages or xtuner.")
    match row_format:
        case "messages":
            return to_row(conversation)
        case "xtuner":
            return {"conversation": list(_xtuner(conversation))}
        case "alpaca":
            return _alpaca(conversation)
        case "sharegpt":
            return _sharegpt(conversation)
        case "llava":
            return _llava(conversation, number)
        case "oasst":
            raise AssertionError("oasst rows are only read")


def _xtuner(conversation: Conversation) -> Iterator[dict[str, Any]]:
    """Every turn has the loss flag: if only some turns had it, Arrow would turn the loss off for the others."""
    system: str | None = None
    question: str | None = None
    for turn in conversation.turns:
        if turn.role == "assistant":
            row: dict[str, Any] = {} if system is None else {"system": system}
            yield row | {"input": question or "", "output": turn.content, "output_with_loss": turn.loss}
            system = question = None
        elif turn.role == "system" and system is None and question is None:
            system = turn.content
        elif turn.role == "user" and question is None:
            question = turn.content
        else:
            raise RowError("xtuner rows have the order system, question, answer; write messages instead.")
    if system is not None or question is not None:
        raise RowError("xtuner rows end with an answer; remove the turns after the last answer, or write messages.")


def _alpaca(conversation: Conversation) -> dict[str, Any]:
    turns = list(conversation.turns)
    row: dict[str, Any] = {}
    if turns and turns[0].role == "system":
        row["system"] = turns.pop(0).content
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise RowError("alpaca rows have the order question, answer, question, answer; write messages instead.")
    pairs = [[question.content, answer.content] for question, answer in zip(turns[::2], turns[1::2], strict=True)]
    if pairs[-1][1] == "<nooutput>":
        raise RowError("in alpaca rows the answer <nooutput> means no answer; change it or write messages.")
    row = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]} | row
    return row | ({"history": pairs[:-1]} if len(pairs) > 1 else {})


def _sharegpt(conversation: Conversation) -> dict[str, Any]:
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": speakers[turn.role], "value": turn.content} for turn in conversation.turns]}


def _llava(conversation: Conversation, number: int) -> dict[str, Any]:
    if any(turn.role == "system" for turn in conversation.turns):
        raise RowError("llava rows cannot contain a system turn; remove it or write messages.")
    images = list(conversation.images)
    row: dict[str, Any] = {"id": str(number)}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    return row | _sharegpt(conversation)
