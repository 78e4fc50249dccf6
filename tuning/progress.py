"""Progress bar on stderr; log lines if stderr is not a terminal."""

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("twinlens")
LOG_INTERVAL = 15.0  # seconds between log lines


class ProgressBar:
    """Context manager that shows the progress of `total` units of work, named by `label`.

    Args:
        done: units that are done already.
        shown: False shows nothing, such as in all processes but the first.
    """

    def __init__(self, label: str, total: int, done: int = 0, shown: bool = True) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
            transient=True,
        )
        self._logged = shown and self._bar.disable
        self._last = time.monotonic()
        self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Add `amount` to the units that are done, and show `note`."""
        task = self._bar.tasks[0]
        self._bar.update(task.id, advance=amount, note=note)
        now = time.monotonic()
        if self._logged and (now - self._last > LOG_INTERVAL or self._bar.finished):
            self._last = now
            log.info("%s %d/%d %s", task.description, task.completed, task.total, note)
