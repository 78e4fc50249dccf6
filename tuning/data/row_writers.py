"""Conversations as rows of other tools; what a format cannot say is refused, never dropped."""

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
"""The keys of a written row and what they hold, as `write_records` takes them."""


def write_row(conversation: Conversation, schema: RowFormat, number: int) -> dict[str, Any]:
    """One conversation as a row.

    Args:
        number: of the row, which LLaVA rows carry as their id.

    Raises:
        RowError: the format has no place for something in this conversation.
    """
    if conversation.images and schema not in ("messages", "llava"):
        raise RowError(f"{schema} rows have no place for pictures; write messages or llava.")
    match schema:
        case "messages":
            return to_row(conversation)
        case "xtuner":
            return {"conversation": list(_xtuner(conversation))}
        case "alpaca":
            return _alpaca(conversation)
        case "sharegpt":
            return {"conversations": _spoken(conversation, schema)}
        case "llava":
            return _llava(conversation, number)
        case "oasst":
            raise AssertionError("read only")


def _xtuner(conversation: Conversation) -> Iterator[dict[str, Any]]:
    """The loss flag stands on every turn: one row that has it turns the loss off wherever it is missing."""
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
            raise RowError(
                "xtuner rows go system, question, answer, and here a turn stands elsewhere; write messages instead."
            )
    if system is not None or question is not None:
        raise RowError("xtuner rows end with an answer; leave out what follows the last one, or write messages.")


def _alpaca(conversation: Conversation) -> dict[str, Any]:
    _refuse_masked(conversation, "alpaca")
    turns = list(conversation.turns)
    row: dict[str, Any] = {}
    if turns and turns[0].role == "system":
        row["system"] = turns.pop(0).content
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise RowError("alpaca rows go question, answer, question, answer; write messages instead.")
    pairs = [[question.content, answer.content] for question, answer in zip(turns[::2], turns[1::2], strict=True)]
    if pairs[-1][1] == "<nooutput>":
        raise RowError("alpaca takes the answer <nooutput> for none at all; change it or write messages.")
    row = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]} | row
    return row | ({"history": pairs[:-1]} if len(pairs) > 1 else {})


def _llava(conversation: Conversation, number: int) -> dict[str, Any]:
    if any(turn.role == "system" for turn in conversation.turns):
        raise RowError("llava rows have no place for system text; leave it out or write messages.")
    images = list(conversation.images)
    row: dict[str, Any] = {"id": str(number)}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    return row | {"conversations": _spoken(conversation, "llava")}


def _spoken(conversation: Conversation, schema: RowFormat) -> list[dict[str, Any]]:
    _refuse_masked(conversation, schema)
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": speakers[turn.role], "value": turn.content} for turn in conversation.turns]


def _refuse_masked(conversation: Conversation, schema: RowFormat) -> None:
    if not all(turn.loss for turn in conversation.turns):
        raise RowError(f"{schema} rows cannot say that an answer has no loss; write messages or xtuner.")
