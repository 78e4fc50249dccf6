"""`twinlens doctor`: show what is installed, what works, and how to fix failures."""

import typer

from twinlens.cli.output import JSON, print_result


def doctor(as_json: bool = JSON) -> None:
    """Check whether fine-tuning can run on this machine, and show how to fix failures.

    The command checks Python packages, GPUs, 4-bit layers, the weights of the embedded model and tower, the
    optional XTuner, the environment variables of the model hub (no request is sent), and disk space.
    """
    from twinlens.diagnosis import diagnose

    findings = diagnose()
    ready = all(finding.ok for finding in findings if finding.required)
    if not as_json:
        from rich.console import Console
        from rich.table import Table

        table = Table("", "what", "state", "fix it with", box=None, pad_edge=False)
        for each in findings:
            table.add_row("ok" if each.ok else "MISSING" if each.required else "-", each.name, each.state, each.fix)
        Console(markup=False, highlight=False).print(table)
    verdict = "text and image fine-tuning can run here" if ready else "not ready: fix what is MISSING"
    rows = [{"what": f.name, "ok": f.ok, "state": f.state, "needed": f.required, "mend": f.fix} for f in findings]
    print_result({"ready": ready, "found": rows}, [verdict], "twinlens demo text" if ready else None, as_json)
    if not ready:
        raise typer.Exit(2)
