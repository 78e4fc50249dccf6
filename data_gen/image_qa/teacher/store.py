"""Store of teacher dialogues: one JSONL file; each valid dialogue is appended immediately."""

import json
import os
from pathlib import Path
from typing import IO, Any, cast

from data_gen.image_qa.teacher.replies import InvalidReply, Rounds, check_rounds
from tuning.errors import DataError, DeviceError


def store_path(out: Path) -> Path:
    """`workshop.json` -> `workshop.json.teacher.jsonl`."""
    return out.with_name(out.name + ".teacher.jsonl")


def read_dialogues(path: Path) -> dict[str, Rounds]:
    """The dialogues of a file by key; an incomplete last line is ignored.

    Raises:
        DataError: the file cannot be read, or a line has not the form that `append_dialogue` writes.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); move it or choose another OUT.") from error
    dialogues: dict[str, Rounds] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = cast(dict[str, Any], json.loads(line))
            dialogues.setdefault(str(row["key"]), check_rounds(list(row["rounds"])))
        except (ValueError, TypeError, KeyError, InvalidReply) as error:
            reason = str(error) if isinstance(error, InvalidReply) else "not a stored dialogue"
            raise DataError(
                f"{path}, line {number}: {reason}; delete the line to request the dialogue again."
            ) from error
    return dialogues


def append_dialogue(path: Path, key: str, model: str, picture: str, seed: int, rounds: Rounds) -> None:
    """Append one dialogue and flush it to disk (fsync).

    Args:
        key: hash of everything that the request depends on.
        picture: sha256 of the picture file.

    Raises:
        DeviceError: the file cannot be written.
    """
    pairs = [{"question": question, "answer": answer} for question, answer in rounds]
    row = {"key": key, "model": model, "picture": picture, "seed": seed, "rounds": pairs}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            _remove_incomplete_line(stream)
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written ({error.strerror}); free space or choose another OUT.") from error


def _remove_incomplete_line(stream: IO[bytes]) -> None:
    """Truncate the file after its last complete line."""
    if not stream.seek(0, os.SEEK_END):
        return
    stream.seek(-1, os.SEEK_END)
    if stream.read() != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
