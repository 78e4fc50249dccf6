"""Comparison of answers before and after training: scores, JSON, tables for terminal and Markdown.

It works on texts: the caller has the model and generates the answers.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.data.card import DatasetCard
from tuning.evaluation.metrics import Metric, ProbeResult, count_metrics, percent
from tuning.evaluation.probes import GROUPS, Probe, is_hit, is_parroted, mentions_any

if TYPE_CHECKING:
    from rich.table import Table

SAMPLES = 4  # answers that the terminal shows


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of all probes, before and after training.

    Args:
        seeds: seeds of the runs.
        probe_files: names of the probe files.
    """

    rows: tuple[ProbeResult, ...]
    seeds: tuple[int, ...] = ()
    probe_files: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name, counted over the rows."""
        return count_metrics(self.rows)


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
    return Comparison(tuple(rows), tuple(seeds), tuple(probe_files))


def pool_seeds(comparisons: Sequence[Comparison]) -> Comparison:
    """The rows of several runs (seeds) as one comparison; every row has the same weight."""
    return Comparison(
        tuple(row for each in comparisons for row in each.rows),
        tuple(seed for each in comparisons for seed in each.seeds),
        tuple(dict.fromkeys(name for each in comparisons for name in each.probe_files)),
    )


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for `comparison.json`. Shares are from 0 to 1, None if nothing was counted."""
    metrics = comparison.metrics
    leak, parrot, retained = (metrics.get(name) for name in ("leak", "parrot", "retained"))
    return {
        "rows": [asdict(row) for row in comparison.rows],
        "scores": {
            group: {"before": metric.before_share, "after": metric.after_share, "n": metric.n}
            for group in GROUPS
            if (metric := metrics.get(group))
        },
        "leak": leak and leak.after_share,
        "leak_before": leak and leak.before_share,
        "parrot": parrot and parrot.after_share,
        "parrot_before": parrot and parrot.before_share,
        "retained": retained and retained.after_share,
        "seeds": comparison.seeds,
        "probe_files": comparison.probe_files,
    }


def score_rows(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """A row for each metric: name, before, after, number of answers."""
    return [
        (m.name, "" if m.before is None else percent(m.before_share), percent(m.after_share), str(m.n))
        for m in comparison.metrics.values()
    ]


def score_table(comparison: Comparison) -> "Table":
    """The scores as a table for the terminal."""
    from rich.table import Column, Table  # slow to import

    table = Table("", *(Column(title, justify="right") for title in ("before", "after", "of")))
    for row in score_rows(comparison):
        table.add_row(*row)
    return table


def sample_table(comparison: Comparison) -> "Table | None":
    """The first answers that became right, before and after, for the terminal; None if there are none."""
    from rich.table import Column, Table
    from rich.text import Text

    learned = [row for row in comparison.rows if row.group != "unrelated" and row.after_hit and not row.before_hit]
    if not learned:
        return None
    table = Table(*(Column(title, ratio=1) for title in ("question", "before", "after")), show_lines=True)
    for row in learned[:SAMPLES]:
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
