"""`twinlens data convert` and `data inspect`: convert and inspect dataset files."""

import dataclasses
from pathlib import Path
from typing import Literal

import typer

from tuning.data.containers import CONTAINER_BY_SUFFIX
from tuning.data.formats import read_rows
from tuning.data.row_readers import ReadNotes
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_result


def convert(
    source: Path = typer.Argument(
        metavar="IN",
        help="Dataset file. Its file type (JSON lines, JSON array, Parquet) and row format (messages, xtuner, alpaca, "
        "sharegpt, llava, oasst) are detected from its content.",
    ),
    out: Path = typer.Argument(
        metavar="OUT", help="The file to write; the suffix .jsonl, .json or .parquet selects its file type."
    ),
    to: Literal["messages", "xtuner", "alpaca", "sharegpt", "llava"] = typer.Option(
        "messages", help="Row format of OUT; messages is that of OpenAI."
    ),
    container: Literal["jsonl", "json", "parquet"] | None = typer.Option(
        None, help="File type of OUT. By default that of its suffix, which this option overrides."
    ),
    repair_nested: Path | None = typer.Option(
        None,
        metavar="QUESTIONS",
        help="Repair rows of XTuner's format whose `input` contains a conversation instead of a question: the input "
        "of row i, counted from 0, is replaced by question i mod N of the N questions in this file. The file is a "
        "text file with one question per line, a JSON list, or JSON lines of strings.",
    ),
    as_json: bool = JSON,
) -> None:
    """Convert a dataset to another row format or file type, and write its dataset card (OUT.card.json).

    IN stays unchanged.
    """
    from twinlens import conversion

    kind = container or CONTAINER_BY_SUFFIX.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(f"{out}: unknown suffix; use {', '.join(CONTAINER_BY_SUFFIX)}, or add --container.")
    made_by = command("data", "convert", source, out, to=to, container=container, repair_nested=repair_nested)
    questions = conversion.read_questions(repair_nested) if repair_nested else []
    done = conversion.convert(source, out, to, kind, made_by, questions)
    card = done.card
    lines = [f"{out}: {card.rows:,} rows as {to} ({card.distinct:,} distinct)", *done.notes.sentences()]
    if repair_nested:
        lines.append(f"{done.repaired:,} rows got their question back from {repair_nested}")
        if done.notes.rows % len(questions):
            lines.append(f"{done.notes.rows:,} rows are not a multiple of {len(questions)} questions: check the list")
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
    print_result(result, lines, command("data", "inspect", out), as_json)


def inspect(
    file: Path = typer.Argument(
        metavar="FILE", help="Dataset file, of any file type and row format that `data convert` reads."
    ),
    model: str | None = typer.Option(
        None,
        help="Show the rows in the chat template of this model: a model folder, a hub name (owner/model), or "
        "`embedded` (the embedded model, SmolLM2-135M-Instruct). By default as roles and texts.",
    ),
    system: str | None = typer.Option(
        None, help="System prompt for rows without one, as the setting `system`. Needs --model."
    ),
    template_name: str | None = typer.Option(
        None,
        "--template",
        help="Name of one of XTuner's chat templates, such as internlm2_chat, instead of the model's own; an unknown "
        "name prints all names. Needs --model, for its tokenizer.",
    ),
    rows: int = typer.Option(3, "--rows", min=0, help="Number of rows to show: the first distinct ones."),
    max_length: int = typer.Option(
        2048,
        min=8,
        help="Maximum row length in tokens, as data.max_length: longer rows are counted, and shown truncated. No "
        "effect without --model.",
    ),
    html: Path | None = typer.Option(
        None, metavar="OUT", help="Also write the result to this file, as one self-contained HTML page."
    ),
    as_json: bool = JSON,
) -> None:
    """Show statistics of a dataset and some of its rows; the text that contributes to the loss is highlighted."""
    from data_gen.container import refuse_overwriting
    from twinlens import inspection

    for option, value in (("--system", system), ("--template", template_name)):
        if value is not None and model is None:
            raise ConfigError(f"{option}: has an effect only in a model's chat template; add --model.")
    if html is not None:
        refuse_overwriting(file, html)
    samples = inspection.first_distinct(read_rows(file), rows)  # first, to find a bad file before a model loads
    template = None
    if model is not None:
        from llm.loading import load_template

        template = load_template(model, system, template_name=template_name)
    notes = ReadNotes()
    summary = inspection.summarize_dataset(read_rows(file, notes), file.resolve().parent, max_length, template)
    views = [
        inspection.view_turns(row) if template is None else inspection.view_tokens(row, template, max_length)
        for row in samples
    ]
    assert notes.file_format is not None
    title = f"{file}: {notes.file_format.row_format} rows as {notes.file_format.container}"
    if html is not None:
        from tuning.atomic import write_atomically

        write_atomically(html, inspection.render_html(title, summary, notes.sentences(), views))
    if not as_json:
        inspection.print_report(title, summary, notes.sentences(), views)
    result = {
        "file": str(file),
        "container": notes.file_format.container,
        "schema": notes.file_format.row_format,
        "census": dataclasses.asdict(summary),
        "ignored": dict(notes.ignored),
        "changes": dict(notes.changes),
        "rows": [dataclasses.asdict(view) for view in views],
    }
    lines = [f"page: {html}"] if html else []
    print_result(result, lines, "twinlens train FILE, with this file under data.files", as_json)
