"""Before and after: what was learned, what was lost, where the persona leaks and the picture is parroted.

Knows answers, not models: whoever holds a model asks the probes and hands the texts over.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.data.card import DatasetCard
from tuning.errors import DataError
from tuning.evaluation.probes import GROUPS, Group, Probe, is_hit, is_parroted, mentions_any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe with its two answers.

    Args:
        leaked_before: whether the answer carries a marker of the card; None where that means nothing: the probe is
            about the persona, or there are no markers. `leaked_after` alike.
        image: path of the picture that was asked about.
        parrot: what gives away the trained picture's answer.
        parroted_before: whether the answer about another picture is the trained picture's; None where that means
            nothing: the probe is of another group, or has no `parrot`. `parroted_after` alike.
    """

    group: Group
    ask: str
    before: str
    after: str
    before_hit: bool
    after_hit: bool
    leaked_before: bool | None = None
    leaked_after: bool | None = None
    expect: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    image: str | None = None
    parrot: tuple[str, ...] = ()
    parroted_before: bool | None = None
    parroted_after: bool | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Share of hits among the `n` probes of a group, from 0 to 1."""

    before: float
    after: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows, and what they come to. Shares are from 0 to 1, None where there is nothing to count.

    Args:
        leak: share of the unrelated answers after training that carry a marker of the card; `leak_before` alike.
        parrot: share of the answers about other pictures, after training, that are the trained picture's;
            `parrot_before` alike.
        retained: share of the unrelated probes that still hit, among those that hit before.
        seeds: of the runs that the rows come from.
        probe_files: that the rows come from, as they were named.
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
    """Judge the answers to `probes`, given in the same order, by the probes' own terms and the card's markers."""
    markers = card.markers if card else ()

    def leaked(probe: Probe, answer: str) -> bool | None:
        return mentions_any(answer, markers) if markers and probe.group == "unrelated" else None

    def copied(probe: Probe, answer: str) -> bool | None:
        return is_parroted(answer, probe) if probe.parrot and probe.group == "other-picture" else None

    rows = [
        ProbeResult(
            group=probe.group,
            ask=probe.ask,
            before=first,
            after=last,
            before_hit=is_hit(first, probe),
            after_hit=is_hit(last, probe),
            leaked_before=leaked(probe, first),
            leaked_after=leaked(probe, last),
            expect=probe.expect,
            reject=probe.reject,
            image=None if probe.image is None else str(probe.image),
            parrot=probe.parrot,
            parroted_before=copied(probe, first),
            parroted_after=copied(probe, last),
        )
        for probe, first, last in zip(probes, before, after, strict=True)
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
    scores: dict[Group, Score] = {}
    for group in GROUPS:
        members = [row for row in rows if row.group == group]
        if members:
            before, after = sum(row.before_hit for row in members), sum(row.after_hit for row in members)
            scores[group] = Score(before / len(members), after / len(members), len(members))
    return Comparison(
        rows=tuple(rows),
        scores=scores,
        leak=_rate(row.leaked_after for row in rows),
        leak_before=_rate(row.leaked_before for row in rows),
        parrot=_rate(row.parroted_after for row in rows),
        parrot_before=_rate(row.parroted_before for row in rows),
        retained=_rate(row.after_hit for row in rows if row.group == "unrelated" and row.before_hit),
        seeds=tuple(seeds),
        probe_files=tuple(probe_files),
    )


def _rate(flags: Iterable[bool | None]) -> float | None:
    counted = [flag for flag in flags if flag is not None]
    return sum(counted) / len(counted) if counted else None


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for `comparison.json`."""
    return dataclasses.asdict(comparison)


def comparison_from_dict(values: dict[str, Any]) -> Comparison:
    """The inverse of `comparison_to_dict`: scores are counted anew from the rows, keys it does not know left out."""
    known = {field.name for field in dataclasses.fields(ProbeResult)}
    rows: list[ProbeResult] = []
    for each in values["rows"]:
        fields: dict[str, Any] = {key: value for key, value in each.items() if key in known}
        fields |= {key: tuple(each.get(key) or ()) for key in ("expect", "reject", "parrot")}
        rows.append(ProbeResult(**fields))
    return _aggregate(rows, values.get("seeds") or (), values.get("probe_files") or ())


def read_comparison(path: Path) -> Comparison:
    """Read a `comparison.json`.

    Raises:
        DataError: the file is missing, or is not what `twinlens compare` writes.
    """
    try:
        return comparison_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); `twinlens compare RUN` makes it.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a comparison ({error!r}); make it again with `twinlens compare RUN`.") from error


def percent(share: float | None) -> str:
    """`0.957` -> `96%`; only all is 100 and only none is 0, so that a single miss stays in sight."""
    if share is None:
        return "–"
    return f"{share if share in (0, 1) else min(max(share, 0.01), 0.99):.0%}"


def score_rows(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """The small table that people read first: label, before, after, and how many it counts."""
    table = [(group, percent(s.before), percent(s.after), str(s.n)) for group, s in comparison.scores.items()]
    if comparison.parrot is not None:
        counted = sum(row.parroted_after is not None for row in comparison.rows)
        table.append(("parrot", percent(comparison.parrot_before), percent(comparison.parrot), str(counted)))
    unrelated = [row for row in comparison.rows if row.group == "unrelated"]
    if comparison.leak is not None:
        marked = sum(row.leaked_after is not None for row in unrelated)
        table.append(("leak", percent(comparison.leak_before), percent(comparison.leak), str(marked)))
    if unrelated:
        table.append(("retained", "", percent(comparison.retained), str(sum(row.before_hit for row in unrelated))))
    return table


def score_table(comparison: Comparison) -> "Table":
    """The scores as a table for the terminal."""
    from rich.table import Table  # costs start-up time that only this verb should pay

    table = Table()
    table.add_column("")
    for title in ("before", "after", "of"):
        table.add_column(title, justify="right")
    for row in score_rows(comparison):
        table.add_row(*row)
    return table


def sample_table(comparison: Comparison, number: int = 4) -> "Table | None":
    """The first answers that training put right, before and after, for the terminal; None where there are none."""
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
    """The scores and every row as two Markdown tables; pictures by their file's name."""
    lines = ["| | before | after | of |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in score_rows(comparison)]
    pictured = any(row.image for row in comparison.rows)
    lines += ["", f"| group |{' picture |' if pictured else ''} question | before | | after | |"]
    lines.append(f"|---|{'---|' if pictured else ''}---|---|---|---|---|")
    for row in comparison.rows:
        cells = [row.group, *([Path(row.image or "").name] if pictured else []), row.ask]
        cells += [row.before, _outcome(row.before_hit, row.leaked_before, row.parroted_before)]
        cells += [row.after, _outcome(row.after_hit, row.leaked_after, row.parroted_after)]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _outcome(answered: bool, leaked: bool | None, parroted: bool | None) -> str:
    words = ["hit" if answered else "miss", *(["leaked"] if leaked else []), *(["parroted"] if parroted else [])]
    return ", ".join(words)


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", " ".join(text.split()))
