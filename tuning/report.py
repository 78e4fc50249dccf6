"""What a run came to, as files that people read: `comparison.json`, `.md`, `.html` and the plots."""

import base64
import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from tuning.card import DatasetCard, card_to_dict
from tuning.compare import Comparison, comparison_to_dict, percent, to_markdown
from tuning.files import replacing, write_atomically
from tuning.plots import CURVES, plot_png, plot_svg
from tuning.probes import GROUPS

TITLES = {"persona": "Persona", "paraphrase": "Paraphrase", "typo": "Typo", "unrelated": "Unrelated"}
MEANINGS = {
    "persona": "who it is, asked plainly",
    "paraphrase": "the same, in other words",
    "typo": "the same, misspelt",
    "unrelated": "what it knew before",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top: shares from 0 to 1, or None where nothing was counted. `n` is what it counts."""

    title: str
    meaning: str
    before: float | None
    after: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Moment:
    """An answer that a probe got from step `first` to step `last`, evaluation after evaluation."""

    first: int
    last: int
    answer: str
    hit: bool


@dataclass(frozen=True, slots=True)
class Story:
    """How the answer to one probe changed while the model learned; `hits` has one entry for each evaluation."""

    group: str
    ask: str
    moments: tuple[Moment, ...]
    hits: tuple[tuple[int, bool], ...]


def write_report(
    run: Path,
    comparison: Comparison,
    *,
    steps: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    task_yaml: str,
    card: DatasetCard | None,
    environment: Mapping[str, Any],
    rehearsal: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report into a run folder and return the path of the HTML file.

    Args:
        steps: rows of `steps.jsonl`; without any there are no plots.
        samples: rows of `samples.jsonl`.
        task_yaml: the resolved task, shown as it is.
        rehearsal: facts about the rehearsal, shown as they are; None where there was none.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    for curve in CURVES if steps else ():
        with replacing(run / "plots" / f"{curve}.png") as stream:
            stream.write(plot_png(steps, curve))
    html = to_html(
        comparison,
        run_name=run.resolve().name,
        steps=steps,
        samples=samples,
        task_yaml=task_yaml,
        card=card,
        environment=environment,
        rehearsal=rehearsal,
    )
    text = json.dumps(comparison_to_dict(comparison), ensure_ascii=False, indent=2)
    write_atomically(run / "comparison.json", text + "\n")
    write_atomically(run / "comparison.md", f"# Before and after\n\n{verdict(comparison)}\n\n{to_markdown(comparison)}")
    write_atomically(run / "comparison.html", html)
    return run / "comparison.html"


def to_html(
    comparison: Comparison,
    *,
    run_name: str,
    steps: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    task_yaml: str,
    card: DatasetCard | None,
    environment: Mapping[str, Any],
    rehearsal: Mapping[str, Any] | None = None,
) -> str:
    """The report as one self-contained page: nothing is fetched, and every text of a person or a model is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["percent"] = percent
    return templates.get_template("report.html.jinja").render(
        title=f"{card.name}: before and after" if card and card.name else "Before and after",
        run_name=run_name,
        comparison=comparison,
        verdict=verdict(comparison),
        headlines=headlines(comparison),
        groups=[group for group in GROUPS if group in comparison.scores],
        titles=TITLES,
        meanings=MEANINGS,
        pictures={row.image: _data_uri(Path(row.image)) for row in comparison.rows if row.image},
        drawings=[plot_svg(steps, curve) for curve in CURVES] if steps else [],
        training=training_facts(steps),
        stories=stories(samples),
        tables={
            "Rehearsal": _facts(rehearsal or {}),
            "Dataset": _facts(card_to_dict(card) if card else {}),
            "Environment": _facts(environment),
        },
        task_yaml=task_yaml,
    )


def headlines(comparison: Comparison) -> list[Headline]:
    """The numbers of the first row: what was to be learned, then what was to be kept."""
    cards = [
        Headline(TITLES[group], MEANINGS[group], score.before, score.after, score.n)
        for group, score in comparison.scores.items()
        if group != "unrelated"
    ]
    unrelated = [row for row in comparison.rows if row.group == "unrelated"]
    if unrelated:
        known = sum(row.before_hit for row in unrelated)
        marked = sum(row.leaked_after is not None for row in unrelated)
        cards.append(Headline("Retained", "still right, of what was right", None, comparison.retained, known))
        cards.append(Headline("Leak", "persona in unrelated answers", comparison.leak_before, comparison.leak, marked))
    return cards


def verdict(comparison: Comparison) -> str:
    """Two or three plain sentences: what was learned, what was lost, where it leaks."""
    said: list[str] = []
    taught = [score for group, score in comparison.scores.items() if group != "unrelated"]
    if taught:
        n = sum(score.n for score in taught)
        before, after = round(sum(s.n * s.before for s in taught)), round(sum(s.n * s.after for s in taught))
        how = "Learned" if after >= 0.9 * n else "Partly learned" if after >= 0.5 * n else "Not learned"
        said.append(f"{how}: {after} of {n} questions about who it is are answered as taught, {before} before.")
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


def stories(samples: Sequence[Mapping[str, Any]]) -> list[Story]:
    """The samples by probe, in the order they were first asked; evaluations in a row with one answer become one."""
    by_probe: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for sample in samples:
        by_probe.setdefault((sample["group"], sample["ask"]), {})[sample["step"]] = sample
    told: list[Story] = []
    for (group, ask), answers in by_probe.items():
        ordered = [answers[step] for step in sorted(answers)]
        moments: list[Moment] = []
        for _, same in groupby(ordered, key=lambda sample: (sample["answer"], sample["hit"])):
            run = list(same)
            moments.append(Moment(run[0]["step"], run[-1]["step"], run[0]["answer"], bool(run[0]["hit"])))
        told.append(Story(group, ask, tuple(moments), tuple((each["step"], bool(each["hit"])) for each in ordered)))
    return told


def training_facts(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a run cost and where its loss went, as label and text; empty without steps."""
    if not steps:
        return []
    facts = [("steps", f"{steps[-1]['step']}"), ("loss", f"{steps[0]['loss']:.3f} → {steps[-1]['loss']:.3f}")]
    checked = [row["validation_loss"] for row in steps if row.get("validation_loss") is not None]
    if checked:
        facts.append(("validation loss", f"{checked[0]:.3f} → {checked[-1]:.3f}, best {min(checked):.3f}"))
    if all("seconds" in row for row in steps):
        minutes, seconds = divmod(round(sum(row["seconds"] for row in steps)), 60)
        facts.append(("time in steps", f"{minutes} min {seconds} s"))
    for key, label in (("tokens", "tokens"), ("labels", "of these trained on")):
        if all(key in row for row in steps):
            facts.append((label, f"{sum(row[key] for row in steps):,}"))
    if all("tokens_per_second" in row for row in steps):
        facts.append(("tokens/s, median", f"{median(row['tokens_per_second'] for row in steps):,.0f}"))
    peaks = [row["peak_memory"] for row in steps if row.get("peak_memory")]
    if peaks:
        facts.append(("peak memory", f"{max(peaks) / 2**30:.2f} GiB"))
    return facts


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of whatever says something; what is nested becomes lines of its own."""
    facts: list[tuple[str, str]] = []
    for key, value in values.items():
        label = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            facts += [(f"{label}, {inner}", text) for inner, text in _facts(value)]
        elif isinstance(value, (list, tuple)):
            facts += [(label, ", ".join(map(str, value)))] if value else []
        elif value is not None:
            facts.append((label, str(value)))
    return facts


def _data_uri(picture: Path) -> str | None:
    if not picture.is_file():
        return None
    kind = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
