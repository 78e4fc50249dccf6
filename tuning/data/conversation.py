"""What a dataset says, once its file format is gone.

The canonical row on disk is one JSON object a line:
`{"messages": [{"role": ..., "content": ..., "loss"?: false}], "images"?: [path relative to the file]}`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_IMAGE_TOKEN = "<image>"  # stands in a text where a picture belongs


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `loss` says whether an assistant's words are trained on; it means nothing on other roles."""

    role: Role
    content: str
    loss: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order (a system turn may stand anywhere) and the pictures of their `<image>` tokens.

    Args:
        images: as the dataset file writes them, relative to it; paths once they are found (`vlm/sources.py`).
    """

    turns: tuple[Turn, ...]
    images: tuple[str | Path, ...] = ()

    @property
    def question(self) -> str:
        """The first thing the user says: what splits and duplicate counts go by."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")


def single_turn(question: str, answer: str | None = None, system: str | None = None) -> Conversation:
    """A conversation of one question, with its answer when there is one."""
    turns = [Turn("system", system)] if system else []
    turns.append(Turn("user", question))
    if answer is not None:
        turns.append(Turn("assistant", answer))
    return Conversation(tuple(turns))


def image_dialogue(pairs: Iterable[tuple[str, str]], image: str) -> Conversation:
    """Questions with their answers about one picture, its mark before the first question as LLaVA trains."""
    turns: list[Turn] = []
    for question, answer in pairs:
        mark = "" if turns else f"{DEFAULT_IMAGE_TOKEN}\n"
        turns += [Turn("user", f"{mark}{question}"), Turn("assistant", answer)]
    return Conversation(tuple(turns), (image,))


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The canonical row; `loss` is written only where it is off, `images` only where there are any."""
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if not turn.loss:
            message["loss"] = False
        messages.append(message)
    row: dict[str, Any] = {"messages": messages}
    if conversation.images:
        row["images"] = [str(image) for image in conversation.images]
    return row


def to_jsonl(conversations: Iterable[Conversation]) -> Iterator[str]:
    """Canonical lines, each ending in a newline, UTF-8 text left readable."""
    for conversation in conversations:
        yield json.dumps(to_row(conversation), ensure_ascii=False) + "\n"
