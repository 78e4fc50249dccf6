"""Metrics of a comparison: the result of each probe; hits, leaks, parrots and retained answers counted over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuning.evaluation.probes import GROUPS, Group

MEANINGS: dict[str, tuple[str, str]] = {
    "persona": ("Persona", "who it is, asked plainly"),
    "paraphrase": ("Paraphrase", "the same, in other words"),
    "typo": ("Typo", "the same, misspelt"),
    "picture": ("Picture", "what it was taught to see"),
    "other-picture": ("Other pictures", "same questions, elsewhere"),
    "blank": ("Blank", "nothing to be seen"),
    "unrelated": ("Unrelated", "what it knew before"),
    "parrot": ("Parrot", "taught answers, elsewhere"),
    "leak": ("Leak", "persona in unrelated answers"),
    "retained": ("Retained", "still right, of what was right"),
}
"""Title and meaning of every metric, by name."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe with its two answers.

    Args:
        leaked_before: whether the answer contains a marker of the card; None where the probe is not of group unrelated
            or the card has no markers. `leaked_after` likewise.
        image: path of the picture of the question.
        parrot: signs of the answer about the trained picture.
        parroted_before: whether the answer about another picture repeats the trained picture's; None where the probe
            is of another group or has no `parrot`. `parroted_after` likewise.
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
        before: None for `retained`, which starts from the answers that were right before.
        direction: whether higher or lower is better.
    """

    name: str
    title: str
    meaning: str
    before: int | None
    after: int
    n: int
    direction: Literal["higher", "lower"] = "higher"

    @property
    def before_share(self) -> float | None:
        """From 0 to 1."""
        return None if self.before is None or not self.n else self.before / self.n

    @property
    def after_share(self) -> float | None:
        """From 0 to 1; None where nothing was counted."""
        return self.after / self.n if self.n else None


def count_metrics(rows: Sequence[ProbeResult]) -> dict[str, Metric]:
    """The metrics of some results by name: the groups that have probes, then parrot, leak and retained."""
    metrics: dict[str, Metric] = {}

    def add(name: str, flags: Sequence[tuple[bool | None, bool | None]], *, lower: bool = False) -> None:
        before, after = (sum(map(bool, side)) for side in zip(*flags, strict=True))
        metrics[name] = Metric(name, *MEANINGS[name], before, after, len(flags), "lower" if lower else "higher")

    for group in GROUPS:
        if flags := [(row.before_hit, row.after_hit) for row in rows if row.group == group]:
            add(group, flags)
    if flags := [(row.parroted_before, row.parroted_after) for row in rows if row.parroted_after is not None]:
        add("parrot", flags, lower=True)
    if flags := [(row.leaked_before, row.leaked_after) for row in rows if row.leaked_after is not None]:
        add("leak", flags, lower=True)
    unrelated = [row for row in rows if row.group == "unrelated"]
    if unrelated:
        known = [row.after_hit for row in unrelated if row.before_hit]
        metrics["retained"] = Metric("retained", *MEANINGS["retained"], None, sum(known), len(known))
    return metrics


def percent(share: float | None) -> str:
    """`0.957` -> `96%`; 100% and 0% are kept for exactly all and none, so that a single miss stays visible."""
    if share is None:
        return "–"
    return f"{share if share in (0, 1) else min(max(share, 0.01), 0.99):.0%}"
