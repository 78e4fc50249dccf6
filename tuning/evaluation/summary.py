"""What a comparison comes to, in a few numbers and plain sentences."""

from dataclasses import dataclass

from tuning.evaluation.compare import Comparison
from tuning.evaluation.probes import Group

TITLES = {
    "persona": "Persona",
    "paraphrase": "Paraphrase",
    "typo": "Typo",
    "picture": "Picture",
    "other-picture": "Other pictures",
    "blank": "Blank",
    "unrelated": "Unrelated",
}
MEANINGS = {
    "persona": "who it is, asked plainly",
    "paraphrase": "the same, in other words",
    "typo": "the same, misspelt",
    "picture": "what it was taught to see",
    "other-picture": "same questions, elsewhere",
    "blank": "nothing to be seen",
    "unrelated": "what it knew before",
}
LOWER_IS_BETTER = ("Parrot", "Leak")


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top: shares from 0 to 1, or None where nothing was counted. `n` is what it counts."""

    title: str
    meaning: str
    before: float | None
    after: float | None
    n: int


def headlines(comparison: Comparison) -> list[Headline]:
    """The numbers of the first row: what was to be learned, then what was to be kept and kept out."""
    cards = [
        Headline(TITLES[group], MEANINGS[group], score.before, score.after, score.n)
        for group, score in comparison.scores.items()
        if group != "unrelated"
    ]
    if comparison.parrot is not None:
        counted = sum(row.parroted_after is not None for row in comparison.rows)
        said = "taught answers, elsewhere"
        place = next(i for i, card in enumerate(cards, 1) if card.title == TITLES["other-picture"])
        cards.insert(place, Headline("Parrot", said, comparison.parrot_before, comparison.parrot, counted))
    unrelated = [row for row in comparison.rows if row.group == "unrelated"]
    if unrelated:
        known = sum(row.before_hit for row in unrelated)
        cards.append(Headline("Retained", "still right, of what was right", None, comparison.retained, known))
    if comparison.leak is not None:
        marked = sum(row.leaked_after is not None for row in unrelated)
        cards.append(Headline("Leak", "persona in unrelated answers", comparison.leak_before, comparison.leak, marked))
    return cards


def summarize(comparison: Comparison) -> str:
    """A few plain sentences: what was learned, what is seen, what was lost, where it leaks or parrots."""
    said: list[str] = []
    n, before, after = _counted(comparison, "persona", "paraphrase", "typo")
    if n:
        how = _degree(after, n, "Learned", "Partly learned", "Not learned")
        said.append(f"{how}: {after} of {n} questions about who it is are answered as taught, {before} before.")
    said += _seen(comparison)
    unrelated = [row for row in comparison.rows if row.group == "unrelated"]
    known = [row for row in unrelated if row.before_hit]
    if known:
        lost = sum(not row.after_hit for row in known)
        gained = sum(row.after_hit and not row.before_hit for row in unrelated)
        kept = f"Lost: {lost} of {len(known)} unrelated answers that were right before" if lost else "Nothing lost"
        said.append(kept + (f"; {gained} became right." if gained else "."))
    marked = [row for row in unrelated if row.leaked_after is not None]
    if marked:
        leaks = sum(bool(row.leaked_after) for row in marked)
        where = f"in {leaks} of {len(marked)} unrelated answers" if leaks else "in no unrelated answer"
        said.append(f"The persona turns up {where}.")
    return " ".join(said) or "There are no probes to judge by."


def _seen(comparison: Comparison) -> list[str]:
    """What the answers about pictures come to, in sentences."""
    said: list[str] = []
    n, before, after = _counted(comparison, "picture")
    if n:
        how = _degree(after, n, "Sees", "Partly sees", "Does not see")
        said.append(f"{how}: {after} of {n} questions about the picture are answered as taught, {before} before.")
    n, before, after = _counted(comparison, "other-picture")
    if n:
        said.append(f"Other pictures: {after} of {n} questions are answered rightly, {before} before.")
    counted = [row.parroted_after for row in comparison.rows if row.parroted_after is not None]
    if counted:
        where = f"in {sum(counted)} of {len(counted)} answers" if any(counted) else "in no answer"
        said.append(f"Parrots {where} about other pictures.")
    n, before, after = _counted(comparison, "blank")
    if n:
        said.append(f"Blank: {after} of {n} answers with nothing to see are right, {before} before.")
    return said


def _counted(comparison: Comparison, *groups: Group) -> tuple[int, int, int]:
    """How many probes of some groups there are, hit before, hit after."""
    rows = [row for row in comparison.rows if row.group in groups]
    return len(rows), sum(row.before_hit for row in rows), sum(row.after_hit for row in rows)


def _degree(part: int, whole: int, well: str, partly: str, hardly: str) -> str:
    return well if part >= 0.9 * whole else partly if part >= 0.5 * whole else hardly
