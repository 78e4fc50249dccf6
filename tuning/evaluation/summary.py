"""Summary of a comparison in plain sentences."""

from tuning.evaluation.compare import Comparison
from tuning.evaluation.metrics import Metric, count_metrics


def summarize(comparison: Comparison) -> str:
    """What was learned, what is seen, what was lost, and where the model leaks or parrots."""
    metrics = count_metrics(comparison.rows)
    sentences: list[str] = []
    learned = [metrics[name] for name in ("persona", "paraphrase", "typo") if name in metrics]
    if learned:
        n, before, after = (sum(getattr(m, key) for m in learned) for key in ("n", "before", "after"))
        degree = _degree(after, n, "Learned", "Partly learned", "Not learned")
        sentences.append(f"{degree}: {after} of {n} questions about who it is are answered as taught, {before} before.")
    sentences += _picture_sentences(metrics)
    retained, leak = metrics.get("retained"), metrics.get("leak")
    if retained and retained.n:
        lost, gained = retained.n - retained.after, metrics["unrelated"].after - retained.after
        sentence = f"Lost: {lost} of {retained.n} unrelated answers that were right before" if lost else "Nothing lost"
        sentences.append(f"{sentence}; {gained} became right." if gained else f"{sentence}.")
    if leak:
        where = f"{leak.after} of {leak.n} unrelated answers mention" if leak.after else "No unrelated answer mentions"
        sentences.append(f"{where} the persona.")
    return " ".join(sentences) or "There are no probes to score."


def _picture_sentences(metrics: dict[str, Metric]) -> list[str]:
    sentences: list[str] = []
    if m := metrics.get("picture"):
        degree = _degree(m.after, m.n, "Sees", "Partly sees", "Does not see")
        sentences.append(
            f"{degree}: {m.after} of {m.n} questions about the picture are answered as taught, {m.before} before."
        )
    if m := metrics.get("other-picture"):
        sentences.append(f"Other pictures: {m.after} of {m.n} questions are answered correctly, {m.before} before.")
    if m := metrics.get("parrot"):
        where = (
            f"{m.after} of {m.n} answers about other pictures repeat"
            if m.after
            else "No answer about other pictures repeats"
        )
        sentences.append(f"Parrot: {where} the trained picture's answer.")
    if m := metrics.get("blank"):
        sentences.append(f"Blank: {m.after} of {m.n} answers about an empty picture are correct, {m.before} before.")
    return sentences


def _degree(part: int, total: int, high: str, medium: str, low: str) -> str:
    return high if part >= 0.9 * total else medium if part >= 0.5 * total else low


def rehearsal_effect(comparison: Comparison) -> dict[str, str]:
    """The aim of rehearsal in counts: unrelated answers that stayed right, and those that mention the persona."""
    metrics = count_metrics(comparison.rows)
    unrelated, retained, leak = (metrics.get(name) for name in ("unrelated", "retained", "leak"))
    right, known = (retained.after, retained.n) if retained else (0, 0)
    return {
        "unrelated answers that stayed right": f"{right} of {known}",
        "unrelated answers with the persona in them": (
            f"{leak.after if leak else 0} of {unrelated.n if unrelated else 0}"
        ),
    }
