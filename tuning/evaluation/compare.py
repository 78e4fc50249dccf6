"""Comparison of the answers before and after training: scores, JSON file, tables for terminal and Markdown.

Works on texts: the caller, which has the model, generates the answers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tuning.data.card import DatasetCard
from tuning.errors import DataError
from tuning.evaluation.metrics import ProbeResult, count_metrics, percent
from tuning.evaluation.probes import GROUPS, Group, Probe, is_hit, is_parroted, mentions_any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Score:
    """Share of hits among the `n` probes of a group, from 0 to 1."""

    before: float
    after: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of all probes and their metrics. Shares are from 0 to 1, None where nothing was counted.

    Args:
        leak: share of the unrelated answers after training that contain a marker of the card; `leak_before` likewise.
        parrot: share of the answers about other pictures, after training, that repeat the trained picture's;
            `parrot_before` likewise.
        retained: share of the unrelated probes that hit after training, among those that hit before.
        seeds: seeds of the runs.
        probe_files: the probe files, as they were named.
    """

    rows: tuple[ProbeResult, ...]
    scores: dict[Group, Score]
    leak: float | None
    leak_before: float | None
    parrot: float | None
    parrot_before: float | None
    retained: float | None
    seeds: tuple[int, ...] = ()
    probe_files: tuple[str, ...] = ()


def compare(
    probes: Sequence[Probe],
    before: Sequence[str],
    after: Sequence[str],
    card: DatasetCard | None,
    *,
    seeds: Sequence[int] = (),
    probe_files: Sequence[str] = (),
) -> Comparison:
    """Score the answers to `probes`, in the same order, by the terms of the probes and the markers of the card."""
    markers = card.markers if card else ()

    def leaked(probe: Probe, answer: str) -> bool | None:
        return mentions_any(answer, markers) if markers and probe.group == "unrelated" else None

    def parroted(probe: Probe, answer: str) -> bool | None:
        return is_parroted(answer, probe) if probe.parrot and probe.group == "other-picture" else None

    rows = [
        ProbeResult(
            group=probe.group,
            ask=probe.ask,
            before=answer_before,
            after=answer_after,
            before_hit=is_hit(answer_before, probe),
            after_hit=is_hit(answer_after, probe),
            leaked_before=leaked(probe, answer_before),
            leaked_after=leaked(probe, answer_after),
            expect=probe.expect,
            reject=probe.reject,
            image=None if probe.image is None else str(probe.image),
            parrot=probe.parrot,
            parroted_before=parroted(probe, answer_before),
            parroted_after=parroted(probe, answer_after),
        )
        for probe, answer_before, answer_after in zip(probes, before, after, strict=True)
    ]
    return _aggregate(rows, seeds, probe_files)


def pool_seeds(comparisons: Sequence[Comparison]) -> Comparison:
    """The rows of several runs (seeds) as one comparison, every row counting the same."""
    return _aggregate(
        [row for each in comparisons for row in each.rows],
        [seed for each in comparisons for seed in each.seeds],
        list(dict.fromkeys(name for each in comparisons for name in each.probe_files)),
    )


def _aggregate(rows: Sequence[ProbeResult], seeds: Sequence[int], probe_files: Sequence[str]) -> Comparison:
    metrics = count_metrics(rows)
    leak, parrot, retained = (metrics.get(name) for name in ("leak", "parrot", "retained"))
    return Comparison(
        rows=tuple(rows),
        scores={
            group: Score(metric.before_share or 0.0, metric.after_share or 0.0, metric.n)
            for group in GROUPS
            if (metric := metrics.get(group))
        },
        leak=leak and leak.after_share,
        leak_before=leak and leak.before_share,
        parrot=parrot and parrot.after_share,
        parrot_before=parrot and parrot.before_share,
        retained=retained and retained.after_share,
        seeds=tuple(seeds),
        probe_files=tuple(probe_files),
    )


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for `comparison.json`."""
    return TypeAdapter(Comparison).dump_python(comparison)


def comparison_from_dict(values: dict[str, Any]) -> Comparison:
    """The inverse of `comparison_to_dict`: metrics are counted again from the rows, unknown keys are ignored."""
    rows = TypeAdapter(tuple[ProbeResult, ...]).validate_python(values["rows"])
    return _aggregate(rows, values.get("seeds") or (), values.get("probe_files") or ())


def read_comparison(path: Path) -> Comparison:
    """Read a `comparison.json`.

    Raises:
        DataError: the file is missing, or is not what `twinlens compare` writes.
    """
    try:
        return comparison_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); `twinlens compare RUN` writes it.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a comparison ({error!r}); write it again with `twinlens compare RUN`.") from error


def score_rows(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """A row for each metric: name, before, after, number of answers."""
    metrics = count_metrics(comparison.rows).values()
    return [
        (m.name, "" if m.before is None else percent(m.before_share), percent(m.after_share), str(m.n)) for m in metrics
    ]


def score_table(comparison: Comparison) -> "Table":
    """The scores as a table for the terminal."""
    from rich.table import Table  # slow to import, so only where it is needed

    table = Table()
    table.add_column("")
    for title in ("before", "after", "of"):
        table.add_column(title, justify="right")
    for row in score_rows(comparison):
        table.add_row(*row)
    return table


def sample_table(comparison: Comparison, number: int = 4) -> "Table | None":
    """The first answers that became right, before and after, for the terminal; None where there are none."""
    from rich.table import Table
    from rich.text import Text

    learned = [row for row in comparison.rows if row.group != "unrelated" and row.after_hit and not row.before_hit]
    if not learned:
        return None
    table = Table(show_lines=True)
    for title in ("question", "before", "after"):
        table.add_column(title, ratio=1)
    for row in learned[:number]:
        table.add_row(*(Text(" ".join(text.split())) for text in (row.ask, row.before, row.after)))
    return table


def to_markdown(comparison: Comparison) -> str:
    """The scores and every row as two Markdown tables; pictures by file name."""
    lines = ["| | before | after | of |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in score_rows(comparison)]
    has_pictures = any(row.image for row in comparison.rows)
    lines += ["", f"| group |{' picture |' if has_pictures else ''} question | before | | after | |"]
    lines.append(f"|---|{'---|' if has_pictures else ''}---|---|---|---|---|")
    for row in comparison.rows:
        cells = [row.group, *([Path(row.image or "").name] if has_pictures else []), row.ask]
        cells += [row.before, _outcome(row.before_hit, row.leaked_before, row.parroted_before)]
        cells += [row.after, _outcome(row.after_hit, row.leaked_after, row.parroted_after)]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _outcome(hit: bool, leaked: bool | None, parroted: bool | None) -> str:
    words = ["hit" if hit else "miss", *(["leaked"] if leaked else []), *(["parroted"] if parroted else [])]
    return ", ".join(words)


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", " ".join(text.split()))
