"""Dialogues that a teacher wrote, kept one a line as soon as they are good."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from data_gen.image_qa.teacher.replies import Rounds, Unusable, check_rounds
from tuning.errors import DataError, DeviceError


@dataclass(frozen=True, slots=True)
class Kept:
    """One dialogue.

    Args:
        key: hash of all that its request depends on.
        picture: hash of the picture.
    """

    key: str
    model: str
    picture: str
    seed: int
    rounds: Rounds


def notes_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.teacher.jsonl`."""
    return out.with_name(out.name + ".teacher.jsonl")


def read_kept(path: Path) -> dict[str, Rounds]:
    """The dialogues of a file by key; a last line that was cut off in the writing does not count.

    Raises:
        DataError: the file cannot be read, or a line is not as `keep` writes it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); move it away or choose another OUT.") from error
    kept: dict[str, Rounds] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = cast(dict[str, Any], json.loads(line))
            kept.setdefault(str(row["key"]), check_rounds(list(row["rounds"])))
        except (ValueError, TypeError, KeyError, Unusable) as error:
            reason = str(error) if isinstance(error, Unusable) else "not as it was written"
            raise DataError(f"{path}, line {number}: {reason}; delete that line to ask for it again.") from error
    return kept


def keep(path: Path, dialogue: Kept) -> None:
    """Append one dialogue and wait until it is on the disk.

    Raises:
        DeviceError: the file cannot be written.
    """
    row = {
        "key": dialogue.key,
        "model": dialogue.model,
        "picture": dialogue.picture,
        "seed": dialogue.seed,
        "rounds": [{"question": question, "answer": answer} for question, answer in dialogue.rounds],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            _cut_half_a_line(stream)
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written ({error.strerror}); free space or choose another OUT.") from error


def _cut_half_a_line(stream: IO[bytes]) -> None:
    """Take away what an interrupted writing left after the last whole line."""
    if not stream.seek(0, os.SEEK_END):
        return
    stream.seek(-1, os.SEEK_END)
    if stream.read() != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
