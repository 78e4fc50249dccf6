"""Report of a run: `comparison.json`, `.md`, `.html` and the plots."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false

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
from tuning.data.card import card_from_dict, card_to_dict
from tuning.data.pictures import open_picture
from tuning.errors import DataError
from tuning.evaluation.compare import Comparison, comparison_to_dict, to_markdown
from tuning.evaluation.metrics import MEANINGS, Metric, ProbeResult, count_metrics, percent
from tuning.evaluation.plots import CURVES, plot_png, plot_svg
from tuning.evaluation.probes import GROUPS, Group
from tuning.evaluation.summary import rehearsal_effect, summarize
from tuning.run_dir import RunDir, read_jsonl

SIDE, THUMBNAIL_SIDE = 512, 112  # pixels; twice the size on the page, for high-density screens
CARDS = (*GROUPS[:5], "parrot", "blank", "retained", "leak")  # the metrics at the top of the page, in order


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """An answer that did not change from the evaluation at step `first` to the one at step `last`."""

    first: int
    last: int
    answer: str
    hit: bool


@dataclass(frozen=True, slots=True)
class AnswerTimeline:
    """The answers to one probe during training; `hits` has one entry for each evaluation."""

    group: str
    ask: str
    image: str | None
    moments: tuple[AnswerSpan, ...]
    hits: tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture embedded in the page, `width` x `height` pixels; without `uri`, `note` says why."""

    name: str
    uri: str | None = None
    width: int = 0
    height: int = 0
    note: str = ""


def write_report(run_dir: RunDir, comparison: Comparison) -> Path:
    """Write the report into a run folder and return the path of the HTML file; without steps there are no plots.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    run, steps = run_dir.path, read_jsonl(run_dir.steps)
    for curve in CURVES if steps else ():
        with atomic_writer(run / "plots" / f"{curve}.png") as stream:
            stream.write(plot_png(steps, curve))
    html = _html(run_dir, comparison, steps)
    text = json.dumps(comparison_to_dict(comparison), ensure_ascii=False, indent=2)
    write_atomically(run / "comparison.json", text + "\n")
    markdown = f"# Before and after\n\n{summarize(comparison)}\n\n{to_markdown(comparison)}"
    write_atomically(run / "comparison.md", markdown)
    write_atomically(run / "comparison.html", html)
    return run / "comparison.html"


def _html(run_dir: RunDir, comparison: Comparison, steps: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained page: nothing is fetched, and all text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    samples, data = read_jsonl(run_dir.samples), json.loads(run_dir.data.read_text(encoding="utf-8"))
    card = card_from_dict(data["card"]) if data.get("card") else None
    rehearsal = data.get("rehearsal")
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "terms": _scoring_terms}
    metrics = count_metrics(comparison.rows)
    return templates.get_template("report.html.jinja").render(
        title=f"{card.name}: before and after" if card and card.name else "Before and after",
        run_name=run_dir.path.resolve().name,
        comparison=comparison,
        verdict=summarize(comparison),
        cards=[metrics[name] for name in CARDS if name in metrics],
        metrics=metrics,
        groups={group: by_picture(comparison, group) for group in GROUPS if group in metrics},
        row_filters=_row_filters(metrics),
        titles={name: title for name, (title, _) in MEANINGS.items()},
        pictures=_pictures((row.image for row in comparison.rows), SIDE),
        thumbnails=_pictures((sample.get("image") for sample in samples), THUMBNAIL_SIDE),
        drawings=[plot_svg(steps, curve) for curve in CURVES] if steps else [],
        training=training_facts(steps),
        stories=answer_timelines(samples),
        tables={
            "Rehearsal": _facts(rehearsal | rehearsal_effect(comparison) if rehearsal else {}),
            "Dataset": _facts(card_to_dict(card) if card else {}),
            "Environment": _facts(json.loads(run_dir.environment.read_text(encoding="utf-8"))),
        },
        task_yaml=run_dir.task.read_text(encoding="utf-8"),
    )


def by_picture(comparison: Comparison, group: Group) -> dict[str | None, list[ProbeResult]]:
    """The rows of a group by the picture they ask about, in the order of their first row."""
    rows: dict[str | None, list[ProbeResult]] = {}
    for row in comparison.rows:
        if row.group == group:
            rows.setdefault(row.image, []).append(row)
    return rows


def _scoring_terms(row: ProbeResult) -> str:
    """The terms that the answer was scored by."""
    reject = row.reject if row.reject != row.parrot else ()
    parts = (("expects", row.expect), ("not", reject), ("parrots", row.parrot))
    return ", ".join(f"{word} {' / '.join(terms)}" for word, terms in parts if terms)


def _row_filters(metrics: Mapping[str, Metric]) -> list[str]:
    """The filters that can match a row of this comparison."""
    special = [word for name, word in (("leak", "leaked"), ("parrot", "parroted")) if name in metrics]
    return ["all", "changed", "learned", "lost", *special, "missed"]


def answer_timelines(samples: Sequence[Mapping[str, Any]]) -> list[AnswerTimeline]:
    """The samples by probe, in the order of first use; consecutive evaluations with the same answer become one."""
    by_probe: dict[tuple[str, str, str | None], dict[int, Mapping[str, Any]]] = {}
    for sample in samples:
        by_probe.setdefault((sample["group"], sample["ask"], sample.get("image")), {})[sample["step"]] = sample
    timelines: list[AnswerTimeline] = []
    for (group, ask, image), answers in by_probe.items():
        ordered = [answers[step] for step in sorted(answers)]
        moments: list[AnswerSpan] = []
        for _, same in groupby(ordered, key=lambda sample: (sample["answer"], sample["hit"])):
            run = list(same)
            moments.append(AnswerSpan(run[0]["step"], run[-1]["step"], run[0]["answer"], bool(run[0]["hit"])))
        timelines.append(
            AnswerTimeline(group, ask, image, tuple(moments), tuple((e["step"], bool(e["hit"])) for e in ordered))
        )
    return timelines


def training_facts(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Steps, loss, time, tokens and memory of a run, as label and text; empty without steps."""
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
    """Label and text of every value that is not empty; nested mappings become lines of their own."""
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
    """Each picture once."""
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
    picture.save(target, "JPEG", quality=90, subsampling=0)  # re-encoded: drops EXIF data such as the location
    data = base64.b64encode(target.getvalue()).decode("ascii")
    return EmbeddedPicture(path.name, f"data:image/jpeg;base64,{data}", picture.width, picture.height)
