"""Metrics of a comparison: how many answers are hits, leaks, parrots or retained."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.evaluation.probes import GROUPS, Group

MEANINGS: dict[str, tuple[str, str]] = {
    "persona": ("Persona", "who it is, asked directly"),
    "paraphrase": ("Paraphrase", "the same, in other words"),
    "typo": ("Typo", "the same, with typos"),
    "picture": ("Picture", "questions about the trained picture"),
    "other-picture": ("Other pictures", "the same questions, other pictures"),
    "blank": ("Blank", "the same questions, empty picture"),
    "unrelated": ("Unrelated", "questions about other subjects"),
    "parrot": ("Parrot", "trained answer, other picture"),
    "leak": ("Leak", "persona in unrelated answers"),
    "retained": ("Retained", "still right, of those right before"),
}
"""Title and meaning of every metric, by name."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe with its two answers.

    Args:
        leaked_before: whether the answer contains a marker of the card; None if the probe is not of group unrelated
            or the card has no markers. `leaked_after` likewise.
        image: path of the picture of the question.
        parrot: terms of the answer about the trained picture.
        parroted_before: whether the answer about another picture repeats the answer about the trained picture; None if
            the probe is of another group or has no `parrot`. `parroted_after` likewise.
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
class Metric:
    """One number of a comparison: how many of `n` answers, before and after training.

    Args:
        name: the probes' group, or `parrot`, `leak`, `retained`.
        before: None for `retained`, which counts only answers that were right before.
        lower_is_better: true for `parrot` and `leak`.
    """

    name: str
    title: str
    meaning: str
    before: int | None
    after: int
    n: int
    lower_is_better: bool = False

    @property
    def before_share(self) -> float | None:
        """From 0 to 1; None if nothing was counted before."""
        return None if self.before is None or not self.n else self.before / self.n

    @property
    def after_share(self) -> float | None:
        """From 0 to 1; None if nothing was counted."""
        return self.after / self.n if self.n else None


def count_metrics(rows: Sequence[ProbeResult]) -> dict[str, Metric]:
    """The metrics of some results by name: the groups that have probes, then parrot, leak and retained."""
    flags: dict[str, list[tuple[bool | None, bool | None]]] = {
        group: [(row.before_hit, row.after_hit) for row in rows if row.group == group] for group in GROUPS
    }
    flags["parrot"] = [(row.parroted_before, row.parroted_after) for row in rows if row.parroted_after is not None]
    flags["leak"] = [(row.leaked_before, row.leaked_after) for row in rows if row.leaked_after is not None]
    metrics: dict[str, Metric] = {}
    for name, pairs in flags.items():
        if pairs:
            before, after = (sum(map(bool, side)) for side in zip(*pairs, strict=True))
            lower = name in ("parrot", "leak")
            metrics[name] = Metric(name, *MEANINGS[name], before, after, len(pairs), lower)
    if "unrelated" in metrics:
        known = [row.after_hit for row in rows if row.group == "unrelated" and row.before_hit]
        metrics["retained"] = Metric("retained", *MEANINGS["retained"], None, sum(known), len(known))
    return metrics


def percent(share: float | None) -> str:
    """`0.957` -> `96%`. Only exactly all gives 100% and exactly none gives 0%, so a single miss stays visible."""
    if share is None:
        return "–"
    return f"{share if share in (0, 1) else min(max(share, 0.01), 0.99):.0%}"
