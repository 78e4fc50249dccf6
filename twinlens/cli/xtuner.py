"""`twinlens xtuner install`: install XTuner in a separate virtual environment."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON, print_result


def install(
    into: Path | None = typer.Option(None, help="Folder of the environment; by default in the cache folder."),
    as_json: bool = JSON,
) -> None:
    """Create a virtual environment with XTuner 0.2.0 (several GB, once)."""
    from twinlens.xtuner.engine import environment

    folder = (into or environment.default_folder()).expanduser().absolute()
    size = environment.install(folder)
    lines = [f"XTuner {environment.VERSION}: {folder}, {size / 2**30:.1f} GiB"]
    if folder != environment.default_folder().absolute():
        lines.append(f"to use it: export {environment.FOLDER}={folder}")
    result = {"folder": str(folder), "bytes": size, "version": environment.VERSION}
    print_result(result, lines, "twinlens train TASK --engine xtuner", as_json)
