"""Summary of a comparison in plain sentences."""

from tuning.evaluation.compare import Comparison

# Metrics, subject of the questions, and words for most, half or fewer of the answers as taught.
TAUGHT = (
    (("persona", "paraphrase", "typo"), "who it is", ("Learned", "Partly learned", "Not learned")),
    (("picture",), "the picture", ("Sees", "Partly sees", "Does not see")),
)


def summarize(comparison: Comparison) -> str:
    """What the model learned and lost, what it sees in pictures, and where it leaks or parrots."""
    metrics = comparison.metrics
    sentences: list[str] = []
    for names, subject, (most, half, fewer) in TAUGHT:
        if found := [metrics[name] for name in names if name in metrics]:
            n, before, after = (sum(getattr(m, key) for m in found) for key in ("n", "before", "after"))
            degree = most if after >= 0.9 * n else half if after >= 0.5 * n else fewer
            sentences.append(
                f"{degree}: {after} of {n} questions about {subject} are answered as taught, {before} before."
            )
    if m := metrics.get("other-picture"):
        sentences.append(f"Other pictures: {m.after} of {m.n} questions are answered correctly, {m.before} before.")
    if m := metrics.get("parrot"):
        some = f"{m.after} of {m.n} answers about other pictures repeat"
        which = some if m.after else "No answer about other pictures repeats"
        sentences.append(f"Parrot: {which} the trained picture's answer.")
    if m := metrics.get("blank"):
        sentences.append(f"Blank: {m.after} of {m.n} answers about an empty picture are correct, {m.before} before.")
    if (m := metrics.get("retained")) and m.n:
        lost, gained = m.n - m.after, metrics["unrelated"].after - m.after
        sentence = f"Lost: {lost} of {m.n} unrelated answers that were right before" if lost else "Nothing lost"
        sentences.append(f"{sentence}; {gained} became right." if gained else f"{sentence}.")
    if m := metrics.get("leak"):
        which = f"{m.after} of {m.n} unrelated answers mention" if m.after else "No unrelated answer mentions"
        sentences.append(f"{which} the persona.")
    return " ".join(sentences) or "There are no probes to score."


def rehearsal_effect(comparison: Comparison) -> dict[str, str]:
    """Counts that rehearsal aims at: unrelated answers that stayed right, and those that mention the persona."""
    metrics = comparison.metrics
    unrelated, retained, leak = (metrics.get(name) for name in ("unrelated", "retained", "leak"))
    return {
        "unrelated answers that stayed right": f"{retained.after} of {retained.n}" if retained else "0 of 0",
        "unrelated answers with the persona in them": (
            f"{leak.after if leak else 0} of {unrelated.n if unrelated else 0}"
        ),
    }
