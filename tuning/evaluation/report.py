"""What a run came to, as files that people read: `comparison.json`, `.md`, `.html` and the plots."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from tuning.atomic import atomic_writer, write_atomically
from tuning.data.card import DatasetCard, card_to_dict
from tuning.data.pictures import open_picture
from tuning.errors import DataError
from tuning.evaluation.compare import Comparison, ProbeResult, comparison_to_dict, percent, to_markdown
from tuning.evaluation.plots import CURVES, plot_png, plot_svg
from tuning.evaluation.probes import GROUPS, Group
from tuning.evaluation.summary import LOWER_IS_BETTER, MEANINGS, TITLES, headlines, summarize

SIDE, THUMBNAIL_SIDE = 512, 112  # pixels; twice what the page shows, for dense screens


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """An answer that a probe got from step `first` to step `last`, evaluation after evaluation."""

    first: int
    last: int
    answer: str
    hit: bool


@dataclass(frozen=True, slots=True)
class AnswerTimeline:
    """How the answer to one probe changed while the model learned; `hits` has one entry for each evaluation."""

    group: str
    ask: str
    image: str | None
    moments: tuple[AnswerSpan, ...]
    hits: tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture as the page has it, `width` x `height` pixels; without `uri`, `note` says why not."""

    name: str
    uri: str | None = None
    width: int = 0
    height: int = 0
    note: str = ""


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
        with atomic_writer(run / "plots" / f"{curve}.png") as stream:
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
    write_atomically(
        run / "comparison.md", f"# Before and after\n\n{summarize(comparison)}\n\n{to_markdown(comparison)}"
    )
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
    templates.filters |= {"percent": percent, "terms": _scoring_terms}
    return templates.get_template("report.html.jinja").render(
        title=f"{card.name}: before and after" if card and card.name else "Before and after",
        run_name=run_name,
        comparison=comparison,
        verdict=summarize(comparison),
        headlines=headlines(comparison),
        groups={group: by_picture(comparison, group) for group in GROUPS if group in comparison.scores},
        shows=_row_filters(comparison),
        titles=TITLES,
        meanings=MEANINGS,
        lower_is_better=LOWER_IS_BETTER,
        pictures=_pictures((row.image for row in comparison.rows), SIDE),
        thumbnails=_pictures((sample.get("image") for sample in samples), THUMBNAIL_SIDE),
        drawings=[plot_svg(steps, curve) for curve in CURVES] if steps else [],
        training=training_facts(steps),
        stories=answer_timelines(samples),
        tables={
            "Rehearsal": _facts(rehearsal or {}),
            "Dataset": _facts(card_to_dict(card) if card else {}),
            "Environment": _facts(environment),
        },
        task_yaml=task_yaml,
    )


def by_picture(comparison: Comparison, group: Group) -> dict[str | None, list[ProbeResult]]:
    """The rows of a group by the picture they ask about, in the order of their first row."""
    found: dict[str | None, list[ProbeResult]] = {}
    for row in comparison.rows:
        if row.group == group:
            found.setdefault(row.image, []).append(row)
    return found


def _scoring_terms(row: ProbeResult) -> str:
    """What the answer was judged by."""
    reject = row.reject if row.reject != row.parrot else ()
    parts = (("expects", row.expect), ("not", reject), ("parrots", row.parrot))
    return ", ".join(f"{word} {' / '.join(wanted)}" for word, wanted in parts if wanted)


def _row_filters(comparison: Comparison) -> list[str]:
    """The filters that can show something in this comparison."""
    leaks, parrots = comparison.leak is not None, comparison.parrot is not None
    special = [*(["leaked"] if leaks else []), *(["parroted"] if parrots else [])]
    return ["all", "changed", "learned", "lost", *special, "missed"]


def answer_timelines(samples: Sequence[Mapping[str, Any]]) -> list[AnswerTimeline]:
    """The samples by probe, in the order they were first asked; evaluations in a row with one answer become one."""
    by_probe: dict[tuple[str, str, str | None], dict[int, Mapping[str, Any]]] = {}
    for sample in samples:
        by_probe.setdefault((sample["group"], sample["ask"], sample.get("image")), {})[sample["step"]] = sample
    told: list[AnswerTimeline] = []
    for (group, ask, image), answers in by_probe.items():
        ordered = [answers[step] for step in sorted(answers)]
        moments: list[AnswerSpan] = []
        for _, same in groupby(ordered, key=lambda sample: (sample["answer"], sample["hit"])):
            run = list(same)
            moments.append(AnswerSpan(run[0]["step"], run[-1]["step"], run[0]["answer"], bool(run[0]["hit"])))
        told.append(
            AnswerTimeline(group, ask, image, tuple(moments), tuple((e["step"], bool(e["hit"])) for e in ordered))
        )
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


def _pictures(paths: Iterable[str | None], side: int) -> dict[str, EmbeddedPicture]:
    """Each picture once, however often it is asked about."""
    return {path: _embed_picture(Path(path), side) for path in dict.fromkeys(paths) if path}


def _embed_picture(path: Path, side: int) -> EmbeddedPicture:
    if not path.is_file():
        return EmbeddedPicture(path.name, note="The file is not there any more.")
    try:
        picture = open_picture(path, "report")
    except DataError:
        return EmbeddedPicture(path.name, note="The file cannot be opened as a picture.")
    picture.thumbnail((side, side))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=90, subsampling=0)  # encoded anew: where a photograph was taken stays at home
    data = base64.b64encode(target.getvalue()).decode("ascii")
    return EmbeddedPicture(path.name, f"data:image/jpeg;base64,{data}", picture.width, picture.height)
