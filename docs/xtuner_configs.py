"""Writes the table of XTuner's own configs in docs/from-xtuner.md: which of them run here, and why others do not.

`make setup` fetches the wheel that they are in; run it after changing what is read: `python docs/xtuner_configs.py`.
"""

import os
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuning.errors import ConfigError
from twinlens.task_files import open_task

PAGE = Path(__file__).resolve().parent / "from-xtuner.md"
BEGIN, END = "<!-- table: written by docs/xtuner_configs.py -->", "<!-- end of the table -->"
WHEEL = "xtuner-0.2.0-py3-none-any.whl"
CONFIGS = "xtuner/configs/"


def find_wheel() -> Path | None:
    """XTuner's wheel: `$TWINLENS_XTUNER_WHEEL`, or where `make setup` puts it; None when there is none."""
    place = Path(os.environ.get("TWINLENS_XTUNER_WHEEL") or Path(sys.prefix) / "wheels" / WHEEL)
    return place if place.is_file() else None


def unpack(wheel: Path, folder: Path) -> list[Path]:
    """The configs of the wheel, in order, laid into a folder; nothing else of it is unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(CONFIGS) and name.endswith(".py")]
        return sorted(Path(archive.extract(name, folder)) for name in names)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a config.

    Args:
        refusal: why no task comes of it; None where one does.
        converts: whether it names rows of a form that is not read.
    """

    refusal: str | None
    converts: bool = False


def verdicts(files: list[Path]) -> dict[Path, Verdict]:
    """What becomes of each config."""
    found: dict[Path, Verdict] = {}
    for file in files:
        try:
            differs = open_task(file).differs
            found[file] = Verdict(None, any("convert them to messages" in line for line in differs))
        except ConfigError as refusal:
            found[file] = Verdict(str(refusal).removeprefix(f"{file}: "))
    return found


def table(found: Mapping[Path, Verdict]) -> str:
    """Counts by folder, and the reasons with their counts."""
    reasons = Counter(verdict.refusal for verdict in found.values() if verdict.refusal).most_common()
    letters = {reason: chr(ord("a") + number) for number, (reason, _) in enumerate(reasons)}
    folders: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for file, verdict in found.items():
        folders[_folder(file)][verdict.refusal] += 1
    lines = ["| folder | configs | read | refused |", "| --- | ---: | ---: | --- |"]
    for folder, counts in folders.items():
        why = ", ".join(f"{counts[reason]} {letter}" for reason, letter in letters.items() if counts[reason])
        lines.append(f"| {folder} | {counts.total()} | {counts[None]} | {why} |")
    read = sum(verdict.refusal is None for verdict in found.values())
    converts = sum(verdict.converts for verdict in found.values())
    lines += [f"| all | {len(found)} | {read} | {len(found) - read} |", ""]
    lines += [f"{converts} of the {read} read name rows of a form of their own, to be converted to messages first.", ""]
    lines += ["| | refused because it | configs |", "| --- | --- | ---: |"]
    lines += [f"| {letters[reason]} | {reason} | {count} |" for reason, count in reasons]
    return "\n".join(lines) + "\n"


def _folder(file: Path) -> str:
    """The folder below `configs/`, with the one below it where that is the kind of training."""
    parts = file.as_posix().rpartition(CONFIGS)[2].split("/")
    return "/".join(parts[: 2 if parts[0] == "custom_dataset" else 1]) if len(parts) > 1 else "(none)"


def with_table(page: str, text: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}"


def main() -> None:
    wheel = find_wheel()
    if wheel is None:
        raise SystemExit(f"{WHEEL}: not there; `make setup` fetches it.")
    with tempfile.TemporaryDirectory() as folder:
        text = table(verdicts(unpack(wheel, Path(folder))))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
