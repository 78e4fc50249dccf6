"""`twinlens xtuner ...`: XTuner itself, in an environment of its own."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON, print_result


def install(
    into: Path | None = typer.Option(None, help="Where to put it; in the cache folder when left out."),
    as_json: bool = JSON,
) -> None:
    """Make a virtual environment with XTuner 0.2.0 as it runs today: several GB, once."""
    from twinlens.xtuner.engine.environment import FOLDER, VERSION, default_folder
    from twinlens.xtuner.engine.environment import install as make

    made = make(into or default_folder())
    lines = [f"XTuner {VERSION}: {made.folder}, {made.size / 2**30:.1f} GiB"]
    if made.folder != default_folder().absolute():
        lines.append(f"to use it: export {FOLDER}={made.folder}")
    result = {"folder": str(made.folder), "bytes": made.size, "version": VERSION}
    print_result(result, lines, "twinlens train TASK --engine xtuner", as_json)
