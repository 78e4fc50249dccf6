"""Report of a run: `comparison.json`, `.md`, `.html` and the plots."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from tuning.atomic import atomic_writer, write_atomically
from tuning.data.card import card_from_dict, card_to_dict
from tuning.data.pictures import open_picture
from tuning.errors import DataError
from tuning.evaluation.compare import Comparison, comparison_to_dict, to_markdown
from tuning.evaluation.metrics import MEANINGS, ProbeResult, percent
from tuning.evaluation.plots import CURVES, plot_png, plot_svg
from tuning.evaluation.probes import GROUPS
from tuning.evaluation.summary import rehearsal_effect, summarize
from tuning.run_dir import RunDir, read_jsonl

SIDE, THUMBNAIL_SIDE = 512, 112  # pixels; twice the size on the page, for high-density screens
CARDS = (*GROUPS[:5], "parrot", "blank", "retained", "leak")  # the metrics at the top of the page, in order
Sample = Mapping[str, Any]  # a row of samples.jsonl
ProbeKey = tuple[str, str, str | None]  # group, question, picture


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture in the page, `width` x `height` pixels. If `uri` is None, `note` gives the reason."""

    name: str
    uri: str | None = None
    width: int = 0
    height: int = 0
    note: str = ""


def write_report(run_dir: RunDir, comparison: Comparison) -> Path:
    """Write the report into a run folder and return the path of the HTML file. A run without steps has no plots.

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
    """One self-contained page: it loads no other file, and all text is escaped."""
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
    metrics = comparison.metrics
    groups: dict[str, dict[str | None, list[ProbeResult]]] = {}
    for row in sorted(comparison.rows, key=lambda row: GROUPS.index(row.group)):
        groups.setdefault(row.group, {}).setdefault(row.image, []).append(row)
    return templates.get_template("report.html.jinja").render(
        title=f"{card.name}: before and after" if card and card.name else "Before and after",
        run_name=run_dir.path.resolve().name,
        comparison=comparison,
        verdict=summarize(comparison),
        cards=[metrics[name] for name in CARDS if name in metrics],
        metrics=metrics,
        groups=groups,
        titles={name: title for name, (title, _) in MEANINGS.items()},
        pictures=_pictures((row.image for row in comparison.rows), SIDE),
        thumbnails=_pictures((sample.get("image") for sample in samples), THUMBNAIL_SIDE),
        plots=[plot_svg(steps, curve) for curve in CURVES] if steps else [],
        training=training_facts(steps),
        timelines=answer_timelines(samples),
        tables={
            "Rehearsal": _facts(rehearsal | rehearsal_effect(comparison) if rehearsal else {}),
            "Dataset": _facts(card_to_dict(card) if card else {}),
            "Environment": _facts(json.loads(run_dir.environment.read_text(encoding="utf-8"))),
        },
        task_yaml=run_dir.task.read_text(encoding="utf-8"),
    )


def _scoring_terms(row: ProbeResult) -> str:
    """The terms by which the answer was scored."""
    reject = row.reject if row.reject != row.parrot else ()
    parts = (("expects", row.expect), ("not", reject), ("parrots", row.parrot))
    return ", ".join(f"{word} {' / '.join(terms)}" for word, terms in parts if terms)


def answer_timelines(samples: Sequence[Sample]) -> dict[ProbeKey, list[list[Sample]]]:
    """The samples of each probe, in the order of steps.

    Consecutive samples with the same answer are in one list.
    """
    by_probe: dict[ProbeKey, dict[int, Sample]] = {}
    for sample in samples:
        by_probe.setdefault((sample["group"], sample["ask"], sample.get("image")), {})[sample["step"]] = sample
    timelines: dict[ProbeKey, list[list[Sample]]] = {}
    for probe, by_step in by_probe.items():
        ordered = [by_step[step] for step in sorted(by_step)]
        timelines[probe] = [list(same) for _, same in groupby(ordered, itemgetter("answer", "hit"))]
    return timelines


def training_facts(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Steps, loss, time, tokens and memory of a run, as label and text; empty without steps."""
    if not steps:
        return []
    validation = [row["validation_loss"] for row in steps if row.get("validation_loss") is not None]
    minutes, seconds = divmod(round(sum(row["seconds"] for row in steps)), 60)
    facts = {
        "steps": f"{steps[-1]['step']}",
        "loss": f"{steps[0]['loss']:.3f} → {steps[-1]['loss']:.3f}",
        "validation loss": f"{validation[0]:.3f} → {validation[-1]:.3f}, best {min(validation):.3f}"
        if validation
        else "",
        "time in steps": f"{minutes} min {seconds} s",
        "tokens": f"{sum(row['tokens'] for row in steps):,}",
        "of these trained on": f"{sum(row['labels'] for row in steps):,}",
        "tokens/s, median": f"{median(row['tokens_per_second'] for row in steps):,.0f}",
        "peak memory": f"{max(row['peak_memory'] for row in steps) / 2**30:.2f} GiB",
    }
    return [(label, text) for label, text in facts.items() if text]


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of every value that is not empty; a nested mapping gives one line for each of its values."""
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
    """The pictures by path, each embedded once."""
    return {path: _embed_picture(Path(path), side) for path in dict.fromkeys(paths) if path}


def _embed_picture(path: Path, side: int) -> EmbeddedPicture:
    if not path.is_file():
        return EmbeddedPicture(path.name, note="The file no longer exists.")
    try:
        picture = open_picture(path, "report")
    except DataError:
        return EmbeddedPicture(path.name, note="The file cannot be opened as a picture.")
    picture.thumbnail((side, side))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=90, subsampling=0)  # re-encoded: drops EXIF data such as the location
    data = base64.b64encode(target.getvalue()).decode("ascii")
    return EmbeddedPicture(path.name, f"data:image/jpeg;base64,{data}", picture.width, picture.height)
