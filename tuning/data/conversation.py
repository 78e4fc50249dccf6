"""Conversations: the content of dataset rows, independent of the file format.

The canonical row is one JSON object per line:
`{"messages": [{"role": ..., "content": ..., "loss"?: false}], "images"?: [path relative to the file]}`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_IMAGE_TOKEN = "<image>"  # placeholder of a picture in a text


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `loss` says whether an assistant message is trained on; other roles ignore it."""

    role: Role
    content: str
    loss: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order (a system turn may be at any position), and the pictures of their `<image>` tokens.

    Args:
        images: picture paths as in the dataset file, relative to it; `vlm/data_files.py` replaces them by full paths.
    """

    turns: tuple[Turn, ...]
    images: tuple[str | Path, ...] = ()

    @property
    def question(self) -> str:
        """The first user message; the key for the validation split and for duplicate counts."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")


def single_turn(question: str, answer: str | None = None, system: str | None = None) -> Conversation:
    """A conversation with one question, and its answer if given."""
    turns = [Turn("system", system)] if system else []
    turns.append(Turn("user", question))
    if answer is not None:
        turns.append(Turn("assistant", answer))
    return Conversation(tuple(turns))


def image_dialogue(pairs: Iterable[tuple[str, str]], image: str) -> Conversation:
    """Questions and answers about one picture; `<image>` is before the first question, as in LLaVA."""
    turns: list[Turn] = []
    for question, answer in pairs:
        prefix = "" if turns else f"{DEFAULT_IMAGE_TOKEN}\n"
        turns += [Turn("user", f"{prefix}{question}"), Turn("assistant", answer)]
    return Conversation(tuple(turns), (image,))


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The canonical row; `loss` is written only if false, `images` only if there are any."""
    messages = [
        {"role": turn.role, "content": turn.content} | ({} if turn.loss else {"loss": False})
        for turn in conversation.turns
    ]
    images = [str(image) for image in conversation.images]
    return {"messages": messages} | ({"images": images} if images else {})


def to_jsonl(conversations: Iterable[Conversation]) -> Iterator[str]:
    """Canonical rows as JSON lines, each with a newline; non-ASCII text is not escaped."""
    for conversation in conversations:
        yield json.dumps(to_row(conversation), ensure_ascii=False) + "\n"
