"""Progress bar of long work on stderr; log lines where there is no terminal."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("twinlens")
QUIET_SECONDS = 15.0  # between lines where there is no terminal


class ProgressBar:
    """Counts pieces of work done, `label` saying what they are; used as a context."""

    def __init__(self, label: str, total: int, done: int = 0, shown: bool = True) -> None:
        self._label, self._total, self._done = label, total, done
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
        self._shown = shown
        self._task = self._bar.add_task(label, total=total, completed=done, note="")
        self._last = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Say that `amount` more is done."""
        self._done += amount
        self._bar.update(self._task, advance=amount, note=note)
        now = time.monotonic()
        if self._shown and self._bar.disable and (now - self._last > QUIET_SECONDS or self._done >= self._total):
            self._last = now
            log.info("%s %d/%d %s", self._label, self._done, self._total, note)
