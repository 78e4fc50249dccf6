"""`twinlens doctor`: what this machine has, what works on it, and the command that mends what does not."""

import typer

from twinlens.cli.output import JSON, print_result


def doctor(as_json: bool = JSON) -> None:
    """Say what is installed, what works, and how to mend what is missing."""
    from twinlens.diagnosis import as_dict, diagnose

    found = diagnose()
    ready = all(finding.ok for finding in found if finding.needed)
    if not as_json:
        from rich.console import Console
        from rich.table import Table

        table = Table("", "what", "state", "mend it with", box=None, pad_edge=False)
        for finding in found:
            mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
            table.add_row(mark, finding.what, finding.state, finding.mend)
        Console(markup=False, highlight=False).print(table)
    verdict = "both paths can run here" if ready else "not all of it can run here yet: mend what is MISSING"
    result = {"ready": ready, "found": [as_dict(finding) for finding in found]}
    print_result(result, [verdict], "twinlens demo text" if ready else None, as_json)
    if not ready:
        raise typer.Exit(2)
