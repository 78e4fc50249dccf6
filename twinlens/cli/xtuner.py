"""`twinlens xtuner install`: install XTuner in a separate virtual environment."""

from pathlib import Path

import typer

from twinlens.cli.output import JSON, print_result


def install(
    into: Path | None = typer.Option(
        None,
        help="Folder of the environment. By default $TWINLENS_XTUNER, else xtuner-0.2.0 in the cache folder "
        "($TWINLENS_CACHE or ~/.cache/twinlens). For any other folder, set TWINLENS_XTUNER to it before training.",
    ),
    as_json: bool = JSON,
) -> None:
    """Install XTuner 0.2.0 in a virtual environment of its own, for `train --engine xtuner`.

    One installation is enough. It takes about 6 GB on disk, and up to 10 GB while it runs.
    """
    from twinlens.xtuner.engine import environment

    folder = (into or environment.default_folder()).expanduser().absolute()
    size = environment.install(folder)
    lines = [f"XTuner {environment.VERSION}: {folder}, {size / 2**30:.1f} GiB"]
    if folder != environment.default_folder().absolute():
        lines.append(f"to use it: export {environment.FOLDER}={folder}")
    result = {"folder": str(folder), "bytes": size, "version": environment.VERSION}
    print_result(result, lines, "twinlens train TASK --engine xtuner", as_json)
