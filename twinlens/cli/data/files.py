"""`twinlens data convert` and `twinlens data inspect`: dataset files of any known format."""

import dataclasses
import shlex
from enum import StrEnum
from pathlib import Path

import typer

from tuning.data.containers import CONTAINER_BY_SUFFIX
from tuning.data.formats import read_rows
from tuning.data.row_readers import ReadNotes
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, print_result


class WrittenSchema(StrEnum):
    """Row formats that `convert` writes."""

    messages = "messages"
    xtuner = "xtuner"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    llava = "llava"


class WrittenContainer(StrEnum):
    """Files that `convert` writes."""

    jsonl = "jsonl"
    json = "json"
    parquet = "parquet"


def convert(
    source: Path = typer.Argument(
        metavar="IN", help="Dataset file: JSONL, a JSON array or Parquet, of any known rows."
    ),
    out: Path = typer.Argument(metavar="OUT", help="The file to write; its ending says which kind."),
    to: WrittenSchema = typer.Option(WrittenSchema.messages, "--to", help="Row format to write."),
    container: WrittenContainer | None = typer.Option(None, help="Kind of file, if OUT's ending does not say it."),
    repair_nested: Path | None = typer.Option(
        None,
        metavar="QUESTIONS",
        help="Mend rows whose input is a whole conversation: row i gets question i mod their number. A text file with "
        "one question a line, a JSON list, or JSON lines of strings.",
    ),
    as_json: bool = JSON,
) -> None:
    """Write a dataset in another format, with its card beside it; IN stays as it is."""
    from twinlens import conversion

    kind = container.value if container else CONTAINER_BY_SUFFIX.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"{out}: its ending says no kind of file; end it in {', '.join(CONTAINER_BY_SUFFIX)}, or add --container."
        )
    command = ["twinlens", "data", "convert", str(source), str(out), "--to", to.value]
    command += ["--container", container.value] if container else []
    command += ["--repair-nested", str(repair_nested)] if repair_nested else []
    questions = conversion.read_questions(repair_nested) if repair_nested else []
    done = conversion.convert(source, out, to.value, kind, shlex.join(command), questions)
    card = done.card
    lines = [f"{out}: {card.rows:,} rows as {to.value} ({card.distinct:,} distinct)", *done.notes.sentences()]
    if repair_nested:
        lines.append(f"{done.repaired:,} rows got their question back from {repair_nested}")
        if done.notes.rows % len(questions):
            lines.append(
                f"{done.notes.rows:,} rows are no whole number of rounds of {len(questions)} questions: check the list"
            )
    if done.moved:
        lines.append(f"{done.moved:,} rows had their picture paths rewritten for the new folder")
    result = {
        "out": str(out),
        "rows": card.rows,
        "distinct": card.distinct,
        "sha256": card.sha256,
        "ignored": dict(done.notes.ignored),
        "changes": dict(done.notes.changes),
        "repaired": done.repaired,
        "moved": done.moved,
    }
    print_result(result, lines, f"twinlens data inspect {shlex.quote(str(out))}", as_json)


def inspect(
    file: Path = typer.Argument(metavar="FILE", help="Dataset file of any known format."),
    model: str | None = typer.Option(
        None, help="Model whose chat markup and tokens to show: a folder, a hub name, embedded."
    ),
    system: str | None = typer.Option(None, help="System text, as the task gives it; needs --model."),
    named: str | None = typer.Option(None, "--template", help="Name of a chat template; needs --model."),
    rows: int = typer.Option(3, "--rows", min=0, help="How many distinct rows to show."),
    max_length: int = typer.Option(2048, min=8, help="Longest row in tokens, as the task's data.max_length."),
    html: Path | None = typer.Option(None, metavar="OUT", help="Write everything as one self-contained page."),
    as_json: bool = JSON,
) -> None:
    """Count what is in a dataset and show rows as the model sees them, with what is learned in colour."""
    from data_gen.container import refuse_overwriting
    from twinlens import inspection

    for option, value in (("--system", system), ("--template", named)):
        if value is not None and model is None:
            raise ConfigError(f"{option}: shows only in a model's markup; add --model.")
    if html is not None:
        refuse_overwriting(file, html)
    shown = inspection.first_distinct(read_rows(file), rows)  # first, so that a bad file is known before a model loads
    template = None
    if model is not None:
        from llm.loading import load_template

        template = load_template(model, system, named=named)
    notes = ReadNotes()
    census = inspection.summarize_dataset(read_rows(file, notes), file.resolve().parent, max_length, template)
    views = [
        inspection.view_turns(row) if template is None else inspection.view_tokens(row, template, max_length)
        for row in shown
    ]
    assert notes.file_format is not None
    title = f"{file}: {notes.file_format.schema} rows as {notes.file_format.container}"
    if html is not None:
        from tuning.atomic import write_atomically

        write_atomically(html, inspection.render_html(title, census, notes.sentences(), views))
    if not as_json:
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        console.print(title, soft_wrap=True)
        for label, value in inspection.facts(census):
            console.print(f"{label}: {inspection.visible_controls(value)}", soft_wrap=True)
        for sentence in notes.sentences():
            console.print(inspection.visible_controls(sentence), soft_wrap=True)
        inspection.print_views(views, console)
    result = {
        "file": str(file),
        "container": notes.file_format.container,
        "schema": notes.file_format.schema,
        "census": dataclasses.asdict(census),
        "ignored": dict(notes.ignored),
        "changes": dict(notes.changes),
        "rows": [dataclasses.asdict(view) for view in views],
    }
    lines = [f"page: {html}"] if html else []
    print_result(result, lines, "twinlens train FILE, with this file under data.files", as_json)
